//! The pages say what is so: their links lead somewhere, and the list of dependencies is the build's.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every page of the repository.
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

/// A page's lines without its blocks of code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

/// The targets of `[text](target)` and `![text](target)`.
fn links(page: &str) -> Vec<String> {
    let text: Vec<_> = prose(page).collect();
    let text = text.join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for heading in prose(page).filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = (1..).map(|number| format!("{anchor}-{number}"));
        let names = std::iter::once(anchor.clone()).chain(again);
        anchors.extend(names.into_iter().find(|name| !anchors.contains(name)));
    }
    anchors
}

/// What is wrong with a link of the page at `path`.
fn trouble(path: &Path, page: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(f, a)| (f, Some(a)));
    let target = path.parent().expect("a directory").join(file);
    if !file.is_empty() && !target.exists() {
        return Some("no such file".to_owned());
    }
    let anchor = anchor?;
    let there = if file.is_empty() { page.to_owned() } else { fs::read_to_string(&target).ok()? };
    (!anchors(&there).contains(anchor)).then(|| format!("no heading #{anchor}"))
}

#[test]
fn every_link_leads_somewhere() {
    let mut troubles = Vec::new();
    let mut count = 0;
    for path in pages(Path::new(".")) {
        let page = fs::read_to_string(&path).expect("UTF-8");
        for link in links(&page) {
            count += 1;
            let trouble = trouble(&path, &page, &link);
            troubles.extend(trouble.map(|what| format!("{}: {link}: {what}", path.display())));
        }
    }
    assert!(troubles.is_empty(), "{}", troubles.join("\n"));
    assert!(count > 30, "only {count} links were found");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = "# One: `two`!\n[a](#one-two) ![b](no.svg)\n```\n[c](nowhere)\n```\n\
        # One two\n[d](#one-two-1)\n[e](#three) [f](Cargo.toml) [g](https://h.example/#x) [i](README.md#no)";
    let path = Path::new("./page.md");
    let bad = links(page).into_iter().filter(|link| trouble(path, page, link).is_some());
    assert_eq!(bad.collect::<Vec<_>>(), ["no.svg", "#three", "README.md#no"]);
}

#[test]
fn the_page_of_dependencies_has_each_of_them_and_no_other() {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().expect("TOML");
    let tables = ["dependencies", "build-dependencies", "dev-dependencies"];
    let direct: BTreeSet<_> = tables
        .iter()
        .flat_map(|table| manifest[*table].as_table().expect("a table").keys())
        .collect();
    let page = include_str!("../docs/dependencies.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let crates = cells.flat_map(|cell| cell.split(", "));
    let listed: Vec<_> = crates.map(|name| name.trim_matches('`').to_owned()).collect();
    assert_eq!(listed.iter().collect::<BTreeSet<_>>(), direct);
    assert_eq!(listed.len(), direct.len(), "one stands there twice");
}
