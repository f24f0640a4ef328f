//! Every link of a page leads to an existing file and heading. So does every mention of a page in code, scripts and
//! manifests.

use std::{collections::BTreeSet, fs, path::Path};

use regex::Regex;

use crate::support::pages::{files, pages};

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

/// The problem with a link of the page at `path`, if there is one.
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
    for path in pages() {
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

/// The pages that a text names, each with the section that follows in quotes.
fn mentions(text: &str) -> Vec<(String, Option<String>)> {
    let mention = Regex::new(r#"([\w./-]*\w\.md)\b(?:,\s+"([^"]+)")?"#).expect("valid");
    let found = mention.captures_iter(text).filter(|found| {
        // Links to other sites lead elsewhere, and a path with a variable is not known here.
        let before = &text[..found.get(0).expect("all of it").start()];
        !before.ends_with([':', '}'])
    });
    found.map(|found| (found[1].to_owned(), found.get(2).map(|s| s.as_str().to_owned()))).collect()
}

/// The problem with a mention in the file at `path`. A mention is relative to the file's directory or to the root.
fn wrong_mention(path: &Path, page: &str, section: Option<&str>) -> Option<String> {
    let places = [path.parent().expect("a directory").join(page), Path::new(".").join(page)];
    let Some(page) = places.iter().find_map(|place| fs::read_to_string(place).ok()) else {
        return Some(format!("no such page: {page}"));
    };
    let section = section?;
    let there = prose(&page).any(|line| line.trim_start_matches('#').trim() == section);
    (!there).then(|| format!("no section \"{section}\""))
}

#[test]
fn every_page_that_code_and_manifests_name_is_there() {
    let own = ["./tests/docs", "./CHANGELOG.md"];
    let mut troubles = Vec::new();
    let mut count = 0;
    let files = files(Path::new(".")).into_iter();
    for path in files.filter(|path| !own.iter().any(|own| path.starts_with(own))) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (page, section) in mentions(&text) {
            count += 1;
            let trouble = wrong_mention(&path, &page, section.as_deref());
            troubles.extend(trouble.map(|what| format!("{}: {what}", path.display())));
        }
    }
    assert!(troubles.is_empty(), "{}", troubles.join("\n"));
    assert!(count > 20, "only {count} mentions were found");
}

#[test]
fn a_mention_of_what_is_not_there_is_found() {
    let text = "# See docs/no.md, or README.md, \"Licence\", then README.md, \"No\"; https://h.example/x.md";
    let bad = mentions(text).into_iter().filter_map(|(page, section)| {
        wrong_mention(Path::new("./Makefile"), &page, section.as_deref())
    });
    assert_eq!(bad.collect::<Vec<_>>(), ["no such page: docs/no.md", "no section \"No\""]);
}
