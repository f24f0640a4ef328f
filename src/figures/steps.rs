//! The counts of steps in the metrics of a daemon.

use crate::fleet::StepCounts;

/// The counter of buildkitd (v0.31 and later), by `kind`. Before its first build a daemon does not have it.
const METRIC: &str = "buildkit_builds_steps_total{";

/// Adds up the steps in `text`, which is in Prometheus' text format. What cannot be read is left out.
pub(super) fn count(text: &str) -> StepCounts {
    let mut counts = StepCounts::default();
    for line in text.lines() {
        let Some((labels, value)) =
            line.strip_prefix(METRIC).and_then(|series| series.rsplit_once('}'))
        else {
            continue;
        };
        let Some(value) = value.split_whitespace().next().and_then(number) else { continue };
        let is = |label| labels.split(',').any(|found| found == label);
        if is("kind=\"cached\"") {
            counts.cached = counts.cached.saturating_add(value);
        } else if is("kind=\"total\"") {
            counts.total = counts.total.saturating_add(value);
        }
    }
    counts
}

/// A whole number, which Prometheus may write as 1e+06.
fn number(text: &str) -> Option<u64> {
    let value: f64 = text.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cached_steps_and_all_steps_are_read() {
        let text = "# TYPE buildkit_builds_steps_total counter\n\
            buildkit_builds_steps_total{kind=\"cached\",otel_scope_name=\"a,b\"} 7\n\
            buildkit_builds_steps_total{kind=\"completed\"} 9\n\
            buildkit_builds_steps_total{otel_scope_name=\"x}\",kind=\"total\"} 1.2e+06 1700000000\n\
            buildkit_builds_steps_total{kind=\"total\"} 1\n\
            buildkit_builds_steps_total{kind=\"total\"} NaN\n\
            buildkit_builds_steps_total{kind=\"total\"} -1\n\
            buildkit_builds_total{kind=\"cached\"} 5\n";
        assert_eq!(count(text), StepCounts { cached: 7, total: 1_200_001 });
    }

    proptest! {
        #[test]
        fn whatever_a_daemon_answers_is_read_without_a_panic(
            text in "(buildkit_builds_steps_total\\{|kind=\"total\"|[},\" \n0-9e+.-]|\\PC){0,40}",
        ) {
            count(&text);
        }
    }
}
