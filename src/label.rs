//! Closed sets of values: of a metric's label, a log field, or a field of `/status.json`.

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
}
