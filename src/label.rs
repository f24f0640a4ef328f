//! Closed sets of values: of a metric's label, a log field, or a field of `/status.json`.

use std::fmt;

/// Defines an enum whose variants each have one label, which metrics, logs and `/status.json` share.
///
/// The enum gets `ALL`, `label()`, `Display`, and the traits that let metrics take the enum itself as a label, so
/// that swapped labels do not compile.
macro_rules! label_set {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant),+
        }

        impl $name {
            /// Every value, in the order of definition.
            $vis const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label in metrics, logs and `/status.json`.
            $vis const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.label())
            }
        }

        impl prometheus_client::encoding::EncodeLabelValue for $name {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> Result<(), std::fmt::Error> {
                self.label().encode(encoder)
            }
        }
    };
}

pub(crate) use label_set;

/// Finds the value of `all` that has the label `text`.
///
/// # Errors
/// There is none. The text names all labels.
pub(crate) fn parse<T: Copy + fmt::Display>(all: &[T], text: &str) -> Result<T, String> {
    let known = all.iter().find(|value| value.to_string() == text);
    known.copied().ok_or_else(|| format!("`{text}` is not one of {}", list(all)))
}

/// The labels of all values, for a person.
pub(crate) fn list<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    label_set! {
        /// The sides of a test.
        enum Side {
            /// Has the first label.
            Left = "left",
            /// Has the second label.
            Right = "right",
        }
    }

    #[test]
    fn every_value_has_its_word() {
        let words: Vec<_> = Side::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["left", "right"]);
    }

    #[test]
    fn a_label_is_read_or_the_others_are_named() {
        assert_eq!(super::parse(Side::ALL, "right"), Ok(Side::Right));
        let error = super::parse(Side::ALL, "up").expect_err("no label");
        assert_eq!(error, "`up` is not one of left, right");
    }
}
