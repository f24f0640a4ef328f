//! How the page writes times, sizes and text from outside.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use maud::{Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::snapshot::Time;

/// The most characters of one text from outside. A line of the page has room for about half of them.
const MAX_CHARS: usize = 300;

/// What stands for itself in a path, besides letters and digits.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Text from outside, as it is shown: cut, isolated from the direction of its neighbours, and with escapes for
/// characters that are not visible or turn the direction of writing.
pub(super) fn foreign(text: &str) -> Markup {
    html! { bdi { (shown(text)) } }
}

/// The same without markup, for the title of a page.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    let is_short = text.len() <= MAX_CHARS || text.chars().nth(MAX_CHARS).is_none();
    if is_short && !text.contains(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::new();
    for char in text.chars().take(MAX_CHARS) {
        if is_unseen(char) {
            // Writing to a String never fails.
            let _ = write!(shown, "{}", char.escape_unicode());
        } else {
            shown.push(char);
        }
    }
    if !is_short {
        shown.push('…');
    }
    Cow::Owned(shown)
}

/// Whether a character is not visible by itself: controls, marks of direction, separators of lines, zero-width ones.
fn is_unseen(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The path of a build's own page. `None` for a ref that a browser would take for a step up in the path.
pub(super) fn build_path(r#ref: &str) -> Option<String> {
    let is_step = matches!(r#ref, "" | "." | "..");
    (!is_step).then(|| format!("/builds/{}", utf8_percent_encode(r#ref, PATH)))
}

/// The ref of a build, with a link to the build's own page.
pub(super) fn build_link(r#ref: &str) -> Markup {
    html! {
        @match build_path(r#ref) {
            Some(path) => a.mono href=(path) { (foreign(r#ref)) },
            None => span.mono { (foreign(if r#ref.is_empty() { "no ref" } else { r#ref })) },
        }
    }
}

/// A duration with its two largest units.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {smaller}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// A duration with milliseconds if it is short.
pub(super) fn precise(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        1000..10_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => span(duration),
    }
}

/// A duration with its largest unit, in minutes at least, so that the page of an idle proxy does not change all the time.
pub(super) fn coarse(duration: Duration) -> String {
    match duration.as_secs() {
        0..60 => "under a minute".to_owned(),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// A number of bytes in a binary unit.
#[allow(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") }
}

/// A time of day in UTC, with the date for who points at it.
pub(super) fn clock(time: Time) -> Markup {
    let full = time.to_string();
    let short = full.split(['T', 'Z']).nth(1).unwrap_or(&full).to_owned();
    html! { time datetime=(full) title=(full) { (short) } }
}

/// `count` things, as `1 build` or `2 builds`.
pub(super) fn count(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_from_outside_is_only_text() {
        for (text, expected) in [
            ("shop/api", "<bdi>shop/api</bdi>"),
            ("<script>\"&", "<bdi>&lt;script&gt;&quot;&amp;</bdi>"),
            ("a\u{202e}b\n\u{7}", "<bdi>a\\u{202e}b\\u{a}\\u{7}</bdi>"),
            ("שלום", "<bdi>שלום</bdi>"),
        ] {
            assert_eq!(foreign(text).into_string(), expected);
        }
        let long = foreign(&"ä".repeat(8 << 10)).into_string();
        assert!(long.ends_with("ä…</bdi>") && long.chars().count() < MAX_CHARS + 20, "{long}");
        assert_eq!(shown(&"ä".repeat(MAX_CHARS)), "ä".repeat(MAX_CHARS));
    }

    #[test]
    fn every_ref_has_a_path_of_one_segment_or_none() {
        assert_eq!(build_path("a/../?#<ü").as_deref(), Some("/builds/a%2F..%2F%3F%23%3C%C3%BC"));
        for step in ["", ".", ".."] {
            assert_eq!(build_path(step), None);
        }
    }

    #[test]
    fn amounts_have_the_unit_that_is_read_most_easily() {
        let second = Duration::from_secs;
        assert_eq!(
            [0, 59, 60, 61, 3600, 3661, 90_000].map(|seconds| span(second(seconds))),
            ["0 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 h 1 min", "1 d 1 h"]
        );
        assert_eq!(
            [1, 61, 7300, 90_000].map(|seconds| coarse(second(seconds))),
            ["under a minute", "1 min", "2 h", "1 d"]
        );
        let precise = |millis| precise(Duration::from_millis(millis));
        assert_eq!([20, 1500, 12_345].map(precise), ["20 ms", "1.5 s", "12 s"]);
        assert_eq!([0, 1023, 1536, 5 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
        assert!(bytes(u64::MAX).ends_with(" TiB"));
    }

    proptest! {
        #[test]
        fn no_text_opens_a_tag(text in ".{0,400}") {
            let markup = foreign(&text).into_string();
            let inner = markup.strip_prefix("<bdi>").and_then(|rest| rest.strip_suffix("</bdi>"));
            prop_assert!(inner.is_some_and(|inner| !inner.contains(['<', '>', '"'])));
        }
    }
}
