//! Address ranges in CIDR form: where a key may be used from.
//!
//! An IPv4 address that arrives mapped into IPv6 (`::ffff:10.0.0.1`, as a dual-stack listener shows it) is judged as
//! the IPv4 address that it is, on both sides. Pure; called by `snapshot`, and by whoever reads a list of ranges.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A range of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

/// Why a text is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkFault {
    /// Neither an address nor a range.
    #[error(
        "{0:?} is no address and no range of addresses; write 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32"
    )]
    Form(String),
    /// The address has bits behind its prefix: most likely a slip.
    #[error("{given:?} has an address inside the range; write {meant} for the whole range")]
    Inside {
        /// What was written.
        given: String,
        /// The range that holds it.
        meant: Network,
    },
}

impl Network {
    /// Whether `address` is in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                cut_v4(address, self.prefix) == base.to_bits()
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                cut_v6(address, self.prefix) == base.to_bits()
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn cut_v4(address: Ipv4Addr, prefix: u8) -> u32 {
    let rest = 32_u32.saturating_sub(u32::from(prefix));
    let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
    address.to_bits() & mask
}

fn cut_v6(address: Ipv6Addr, prefix: u8) -> u128 {
    let rest = 128_u32.saturating_sub(u32::from(prefix));
    let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
    address.to_bits() & mask
}

impl FromStr for Network {
    type Err = NetworkFault;

    fn from_str(text: &str) -> Result<Self, NetworkFault> {
        let form = || NetworkFault::Form(text.chars().take(64).collect());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_not| form())?;
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        let digits = |p: &&str| p.len() <= 3 && p.bytes().all(|b| b.is_ascii_digit());
        let prefix: u8 = match prefix {
            None => width,
            Some(prefix) => Some(prefix)
                .filter(digits)
                .and_then(|p| p.parse().ok())
                .filter(|p| *p <= width)
                .ok_or_else(form)?,
        };
        // A range of mapped addresses is a range of IPv4 addresses.
        let (address, prefix) = match (address.to_canonical(), address) {
            (v4 @ IpAddr::V4(_), IpAddr::V6(_)) if prefix >= 96 => (v4, prefix.saturating_sub(96)),
            _ => (address, prefix),
        };
        let base = match address {
            IpAddr::V4(v4) => IpAddr::V4(cut_v4(v4, prefix).into()),
            IpAddr::V6(v6) => IpAddr::V6(cut_v6(v6, prefix).into()),
        };
        let network = Self { base, prefix };
        if base == address {
            Ok(network)
        } else {
            Err(NetworkFault::Inside {
                given: text.to_owned(),
                meant: network,
            })
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.base.is_ipv4() { 32 } else { 128 };
        if self.prefix == width {
            write!(f, "{}", self.base)
        } else {
            write!(f, "{}/{}", self.base, self.prefix)
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Network {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn holds(range: &str, address: &str) -> bool {
        network(range).contains(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_in_its_range_however_it_arrives() {
        for (range, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "11.1.2.3", false),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.8", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
        ] {
            assert_eq!(holds(range, address), inside, "{address} in {range}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_the_one_that_was_meant() {
        for text in [
            "",
            "10",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "::1/129",
            "host",
            " 10.0.0.1",
            "010.0.0.1",
        ] {
            assert!(
                matches!(text.parse::<Network>(), Err(NetworkFault::Form(_))),
                "{text}"
            );
        }
        let fault = "10.0.0.7/8".parse::<Network>().unwrap_err().to_string();
        assert!(fault.contains("10.0.0.0/8"), "{fault}");
        for text in ["10.0.0.0/8", "10.0.0.7", "2001:db8::/32", "::1"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("::ffff:10.0.0.0/104").to_string(), "10.0.0.0/8");
    }
}
