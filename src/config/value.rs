//! The values of settings, which are written in the same way in the file, in a variable and in a flag.

use std::{
    fmt,
    net::IpAddr,
    num::NonZeroU32,
    ops::Deref,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use crate::address::{Address, AddressError};

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

/// A number from 0 to `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpTo<const MOST: u32>(u32);

impl<const MOST: u32> UpTo<MOST> {
    /// `number`, or `MOST` if that is less.
    pub const fn of(number: u32) -> Self {
        Self(if number < MOST { number } else { MOST })
    }

    /// The number.
    pub fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<const MOST: u32> FromStr for UpTo<MOST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| *number <= MOST);
        number.map(Self).ok_or_else(|| format!("`{text}` is not a number from 0 to {MOST}"))
    }
}

impl<const MOST: u32> fmt::Display for UpTo<MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
