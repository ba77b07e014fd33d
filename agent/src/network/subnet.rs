//! The address pool of a node: an IPv4 network in CIDR notation (RFC 4632). Its first host address is
//! the gateway, the rest but the broadcast address are containers'.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 network of 5 to 16,777,213 containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// Not a usable pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "address pool {0:?}: expected a network of unicast addresses such as 10.88.0.0/16, with a prefix of 8 to 29 and no host bits"
)]
pub struct InvalidSubnet(String);

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let invalid = || InvalidSubnet(text.chars().take(64).collect());
        let (base, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let base: Ipv4Addr = base.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        // "This network", loopback, multicast and reserved addresses (RFC 6890): no host has one on a link. A prefix
        // of 8 or more lies in one of them or in none.
        let special = matches!(base.octets()[0], 0 | 127 | 224..);
        if special || !(8..=29).contains(&prefix) || u32::from(base) & (u32::MAX >> prefix) != 0 {
            return Err(invalid());
        }
        Ok(Self { base, prefix })
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnet;
    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl Subnet {
    #[must_use]
    pub fn base(&self) -> Ipv4Addr {
        self.base
    }

    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + 1)
    }

    #[must_use]
    pub fn has(&self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.base)) >> (32 - self.prefix) == 0
    }

    /// First and last container address as numbers, both included.
    pub(super) fn range(&self) -> (u32, u32) {
        let base = u32::from(self.base);
        (base + 2, (base | (u32::MAX >> self.prefix)) - 1)
    }

    /// How many containers it has addresses for.
    #[must_use]
    pub fn containers(&self) -> u32 {
        let (first, last) = self.range();
        last - first + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_pool() {
        let pool: Subnet = "10.88.0.0/16".parse().unwrap();
        assert_eq!(pool.gateway(), Ipv4Addr::new(10, 88, 0, 1));
        let (first, last) = pool.range();
        assert_eq!(Ipv4Addr::from(first), Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(Ipv4Addr::from(last), Ipv4Addr::new(10, 88, 255, 254));
        assert_eq!("10.0.0.8/29".parse::<Subnet>().unwrap().containers(), 5);
        assert_eq!(pool.to_string(), "10.88.0.0/16");
    }

    #[test]
    fn what_is_no_pool_is_refused() {
        for text in ["", "10.88.0.0", "10.88.0.1/16", "10.0.0.0/7", "10.0.0.0/30", "::/64", "10.0.0.0/x"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        for text in ["0.0.0.0/8", "127.0.0.0/24", "224.0.0.0/16", "240.0.0.0/8"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
