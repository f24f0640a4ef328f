//! The page of errors has a row for each kind of the proxy's own errors.

use std::collections::BTreeSet;

use buildkit_lb::error::ErrorReason;

#[test]
fn the_page_of_errors_has_each_of_them_and_no_other() {
    let rows = include_str!("../../docs/errors.md").lines();
    let listed = rows.filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let listed: BTreeSet<_> =
        listed.map(|(word, _rest)| word).filter(|word| *word != "buildkit-lb-error").collect();
    assert_eq!(listed, ErrorReason::ALL.iter().map(|reason| reason.label()).collect());
}
