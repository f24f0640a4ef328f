//! The page of dependencies has a row for each crate.

use std::collections::BTreeSet;

#[test]
fn the_page_of_dependencies_has_each_of_them_and_no_other() {
    let manifest: toml::Table = include_str!("../../Cargo.toml").parse().expect("TOML");
    let tables = ["dependencies", "build-dependencies", "dev-dependencies"];
    let direct: BTreeSet<_> = tables
        .iter()
        .flat_map(|table| manifest[*table].as_table().expect("a table").keys())
        .collect();
    let page = include_str!("../../docs/dependencies.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let crates = cells.flat_map(|cell| cell.split(", "));
    let listed: Vec<_> = crates.map(|name| name.trim_matches('`').to_owned()).collect();
    assert_eq!(listed.iter().collect::<BTreeSet<_>>(), direct);
    assert_eq!(listed.len(), direct.len(), "one stands there twice");
}
