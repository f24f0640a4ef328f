//! Closed sets of words: the values of a metric's label, of a log field, of the status page.

/// An enum whose variants each have one word, which metrics, logs and the status page share.
///
/// Gives `ALL`, `label()`, `Display`, and what the metrics need to take the enum itself as a label: two
/// labels that are swapped do not compile.
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
            /// Every value.
            $vis const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its word in metrics, logs and the status page.
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
        /// Two words.
        enum Side {
            /// One.
            Left = "left",
            /// The other.
            Right = "right",
        }
    }

    #[test]
    fn every_value_has_its_word() {
        let words: Vec<_> = Side::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["left", "right"]);
    }
}
