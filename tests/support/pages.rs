//! The pages of the repository, and the code in them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;

/// Every file of the repository below `directory`.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
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
pub(crate) fn pages() -> Vec<PathBuf> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    files(Path::new(".")).into_iter().filter(is_page).collect()
}

/// A block of code of a page.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) page: PathBuf,
    pub(crate) language: String,
    pub(crate) text: String,
}

/// Every block of code of every page.
pub(crate) fn blocks() -> Vec<Block> {
    pages().iter().flat_map(|page| blocks_of(page)).collect()
}

/// The blocks of code of a page, in order.
pub(crate) fn blocks_of(page: &Path) -> Vec<Block> {
    let fence = Regex::new(r"(?ms)^( *)```(\w+)\n(.*?)^ *```$").expect("valid");
    let text = fs::read_to_string(page).expect("UTF-8");
    let block = |block: regex::Captures| Block {
        page: page.to_owned(),
        language: block[2].to_owned(),
        text: block[3].replace(&format!("\n{}", &block[1]), "\n").trim_start().to_owned(),
    };
    fence.captures_iter(&text).map(block).collect()
}

/// The commands of a block, without prompts and without output.
pub(crate) fn typed(block: &Block) -> Option<String> {
    match &*block.language {
        "sh" => Some(block.text.clone()),
        "console" => Some(commands(&block.text)),
        _ => None,
    }
}

/// The lines after a prompt. Each has the lines that continue it: after a backslash, in a loop, or up to the `END` of a
/// text.
pub(crate) fn commands(console: &str) -> String {
    let (mut script, mut goes_on, mut in_loop, mut in_text) = (String::new(), false, false, false);
    for line in console.lines() {
        let command = line.strip_prefix("$ ");
        if command.is_some() || goes_on || in_loop || in_text {
            let command = command.unwrap_or(line);
            in_loop = (in_loop || command.starts_with("for ")) && command.trim() != "done";
            in_text = (in_text || command.ends_with("<<'END'")) && command != "END";
            goes_on = command.ends_with(['\\', '|']);
            script += command;
            script += "\n";
        }
    }
    script
}
