//! The README of the kit matches the steps and the proxy.

use std::fs;

use regex::Regex;

use crate::KIT;

#[test]
fn the_readme_lists_the_variables_of_the_steps() {
    let readme = fs::read_to_string(format!("{KIT}/README.md")).expect("a file");
    let listed = |start: &str, end: &str| {
        let part = readme.split(start).nth(1).and_then(|rest| rest.split(end).next());
        Regex::new("(?m)`([A-Z_]+)`[,|` A-Z_]* \\|")
            .expect("valid")
            .captures_iter(part.expect("a part"))
            .map(|found| found[1].to_owned())
            .collect::<Vec<_>>()
    };
    let told = listed("## The steps", "**Signing in**");
    let names = ["login.sh", "names.sh", "tls.sh", "build-buildctl.sh", "build-buildx.sh"];
    let steps = names.map(|name| fs::read_to_string(format!("{KIT}/steps/{name}")).expect(name));
    assert!(told.len() >= 8, "{told:?}");
    for variable in told {
        assert!(steps.concat().contains(&format!("{{{variable}:")), "no step reads {variable}");
    }
}

#[test]
fn the_readme_quotes_the_proxys_own_errors() {
    let readme = fs::read_to_string(format!("{KIT}/README.md")).expect("a file");
    let errors = include_str!("../../src/error.rs");
    for words in ["no backend is available: ", "} was lost: ", "} cannot be reached: "] {
        assert!(errors.contains(words), "no error says `{words}`");
        assert!(readme.contains(words.trim_start_matches('}')), "no row for `{words}`");
    }
}
