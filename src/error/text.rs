//! Texts of errors, for people.

use std::{error::Error, fmt};

/// The first five of `items` as a text, and how many more there are.
///
/// A fleet may have a thousand backends. A person cannot read so many names, and a client drops an error that is
/// longer than its limit for metadata.
pub fn first_few<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    const FEW: usize = 5;
    let mut items = items.into_iter();
    let few: Vec<_> = items.by_ref().take(FEW).map(|item| item.to_string()).collect();
    match items.count() {
        0 => few.join(", "),
        more => format!("{} and {more} more", few.join(", ")),
    }
}

/// Displays an error and all its causes on one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The text of [`Chain`].
pub fn chain(error: &(dyn Error + 'static)) -> String {
    Chain(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireError;

    #[test]
    fn of_many_the_first_five_are_named() {
        assert_eq!(first_few(["a"]), "a");
        assert_eq!(first_few(1..=5), "1, 2, 3, 4, 5");
        assert_eq!(first_few(1..=500), "1, 2, 3, 4, 5 and 495 more");
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = WireError::Compressed(std::io::Error::other("bad header"));
        assert_eq!(chain(&error), "compressed message cannot be read: bad header");
    }
}
