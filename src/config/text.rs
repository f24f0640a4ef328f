//! How serde reads and writes values: as text, wherever a value has a text.

use std::{fmt, marker::PhantomData};

use clap::ValueEnum;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, IntoDeserializer, SeqAccess, Visitor},
};

use super::{
    otlp::Collector,
    value::{Budget, Count, FilePath, LocalAddress, Span, UpTo},
};
use crate::{
    access::Pattern,
    address::{Address, HostPort},
    discovery::{MetricsPort, Target, static_list},
    fleet::Endpoint,
    networks::Network,
    policy::{LoadFactor, PolicyKind},
    telemetry::{LogFormat, LogLevel},
    tls::{ClientAuth, ServerNames},
};

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
    Address: str::parse, Budget: str::parse, Collector: str::parse, FilePath: str::parse, HostPort: str::parse, LoadFactor: str::parse,
    LocalAddress: str::parse, MetricsPort: str::parse, Network: str::parse, ServerNames: str::parse, Span: str::parse, Target: str::parse,
    Endpoint: static_list::parse, Pattern: Pattern::parse,
    ClientAuth: word, LogFormat: word, LogLevel: word, PolicyKind: word,
}

write_as_text! {
    Address, Budget, ClientAuth, Collector, FilePath, HostPort, LoadFactor, LocalAddress, LogFormat, LogLevel, MetricsPort, Network,
    PolicyKind, Span, Target,
}

impl<'de, const MOST: u32> Deserialize<'de> for Count<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<const MOST: u32> Serialize for Count<MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.non_zero().get())
    }
}

impl<'de, const MOST: u32> Deserialize<'de> for UpTo<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<const MOST: u32> Serialize for UpTo<MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get() as u64)
    }
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
