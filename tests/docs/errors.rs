//! The page of errors has a row for each word of the proxy's own errors.

use std::collections::BTreeSet;

use regex::Regex;

#[test]
fn the_page_of_errors_has_each_of_them_and_no_other() {
    let source = include_str!("../../src/error.rs");
    let reason = source.split_once("pub fn reason(").expect("a function").1;
    let reason = reason.split_once("\n    }\n").expect("an end").0;
    let word = Regex::new(r#"=> "(\w+)""#).expect("valid");
    let words: Vec<_> = word.captures_iter(reason).map(|found| found[1].to_owned()).collect();
    let rows = include_str!("../../docs/errors.md").lines();
    let listed = rows.filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let listed: BTreeSet<_> =
        listed.map(|(word, _rest)| word).filter(|word| *word != "buildkit-lb-error").collect();
    assert_eq!(listed, words.iter().map(String::as_str).collect());
    assert!(words.len() > 10, "only {} were found", words.len());
}
