//! The pages say what is so: what they tell people to type is shell, their links lead somewhere, their tables are
//! those of the code, and the list of dependencies is the build's.

mod blocks;
mod dependencies;
mod links;
#[path = "../support/mod.rs"]
mod support;
mod tables;
mod values;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every page of the repository below `directory`.
fn pages(directory: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            pages.extend(self::pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages
}
