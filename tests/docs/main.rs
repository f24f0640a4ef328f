//! The pages are correct: commands are valid shell, links lead somewhere, tables match the code, and the list of
//! dependencies matches the build.

mod blocks;
mod dependencies;
mod errors;
mod links;
#[path = "../support/mod.rs"]
mod support;
mod tables;
mod values;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file of the repository below `directory`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        if !path.is_dir() {
            files.push(path);
        } else if ![".git", "target"].iter().any(|name| path.ends_with(name)) {
            files.extend(self::files(&path));
        }
    }
    files
}

/// Every page of the repository.
fn pages() -> Vec<PathBuf> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    files(Path::new(".")).into_iter().filter(is_page).collect()
}
