//! The values of settings, which are written in the same way in the file, in a variable and in a flag.

use std::{
    fmt,
    marker::PhantomData,
    net::IpAddr,
    num::NonZeroU32,
    ops::Deref,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::ValueEnum;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, IntoDeserializer, SeqAccess, Visitor},
};

use crate::{
    access::Pattern,
    address::{Address, AddressError, HostPort},
    discovery::{Target, static_list},
    fleet::Endpoint,
    networks::Network,
    policy::{LoadFactor, PolicyKind},
    telemetry::{LogFormat, LogLevel},
    tls::{ClientAuth, ServerNames},
};

/// A duration, written as 30s, 10m or 1h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("`{text}` is not a duration such as 30s, 10m or 1h: {error}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number from 1 to `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count<const MOST: u32>(NonZeroU32);

impl<const MOST: u32> Count<MOST> {
    /// `number`, or the nearest number that is allowed.
    pub fn nearest(number: usize) -> Self {
        let number = u32::try_from(number).unwrap_or(MOST).min(MOST);
        Self(NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN))
    }

    /// The number.
    pub fn get(self) -> usize {
        usize::try_from(self.0.get()).unwrap_or(usize::MAX)
    }

    /// The number, which is not zero.
    pub fn non_zero(self) -> NonZeroU32 {
        self.0
    }
}

impl<const MOST: u32> FromStr for Count<MOST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number: &NonZeroU32| number.get() <= MOST);
        number.map(Self).ok_or_else(|| format!("`{text}` is not a number from 1 to {MOST}"))
    }
}

impl<const MOST: u32> fmt::Display for Count<MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, const MOST: u32> Deserialize<'de> for Count<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<const MOST: u32> Serialize for Count<MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0.get())
    }
}

/// A number of bytes, written as 67108864, 64MiB or 1GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(pub u64);

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Two of the largest messages must fit.
        const LEAST: u64 = 32 << 20;
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("", 0)];
        let bytes = units.into_iter().find_map(|(unit, shift)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(1 << shift)
        });
        let bytes = bytes.filter(|bytes| (LEAST..=1 << 50).contains(bytes));
        bytes.map(Self).ok_or_else(|| {
            format!("`{text}` is not a size of at least 32MiB, such as 64MiB or 1GiB")
        })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address that only this machine can reach: `unix:///PATH`, or `tcp://IP:PORT` with a loopback IP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress(pub Address);

impl FromStr for LocalAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address: Address = text.parse().map_err(|error: AddressError| error.to_string())?;
        if let Address::Tcp { host, .. } = &address
            && !host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
        {
            return Err(format!(
                "`{text}` is neither unix:///PATH nor a loopback address such as tcp://127.0.0.1:9091: everybody \
                 who reaches it may drain and cordon"
            ));
        }
        Ok(Self(address))
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The path of a file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath(pub PathBuf);

impl Deref for FilePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl FromStr for FilePath {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.into()))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Parses one of the words of an enum.
fn word<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_unknown| {
        let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let mut words: Vec<_> = values.map(|value| value.get_name().to_owned()).collect();
        let last = words.pop().unwrap_or_default();
        format!("`{text}` is not one of {} or {last}", words.join(", "))
    })
}

/// Implements `Deserialize` for types that are written as text, by the function that parses the text.
macro_rules! read_from_text {
    ($($kind:ty: $parse:expr),* $(,)?) => { $(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $parse(&text(deserializer)?).map_err(D::Error::custom)
            }
        }
    )* };
}

/// Implements `Serialize` for types that are written as the text that they display.
macro_rules! write_as_text {
    ($($kind:ty),* $(,)?) => { $(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )* };
}

read_from_text! {
    Address: str::parse, Budget: str::parse, FilePath: str::parse, HostPort: str::parse, LoadFactor: str::parse,
    LocalAddress: str::parse, Network: str::parse, ServerNames: str::parse, Span: str::parse, Target: str::parse,
    Endpoint: static_list::parse, Pattern: Pattern::parse,
    ClientAuth: word, LogFormat: word, LogLevel: word, PolicyKind: word,
}

write_as_text! {
    Address, Budget, ClientAuth, FilePath, HostPort, LoadFactor, LocalAddress, LogFormat, LogLevel, Network,
    PolicyKind, Span, Target,
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&static_list::text(self))
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

impl Serialize for ServerNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text().unwrap_or_default())
    }
}

/// Reads a string, or a number as if it were written as a string.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            Ok(text.trim().to_owned())
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }

    deserializer.deserialize_any(Text)
}

/// Reads a list of values, or one value.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a list of strings")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
            Ok(vec![T::deserialize(text.into_deserializer())?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(entry) = entries.next_element()? {
                list.push(entry);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_any(List(PhantomData))
}
