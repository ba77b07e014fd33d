//! The netlink messages that add a container to the table's sets and maps and take it out again. Pure.
//!
//! Invariant: the keys are laid out as `ruleset.rs` declares the sets' types: parts of a concatenation
//! are padded to 4 bytes each, numbers are in network order, an interface's name takes 16 bytes.

use super::ruleset::Entry;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const GET_CHAIN: u16 = (NFTABLES << 8) | 4;
const NEW_ELEMENT: u16 = (NFTABLES << 8) | 12;
const DELETE_ELEMENT: u16 = (NFTABLES << 8) | 14;
const FAMILY_INET: u8 = 1;
const NESTED: u16 = 0x8000;
/// `NFTA_*` of the messages used here.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const VALUE: u16 = 1;
/// `IFNAMSIZ`.
const NAME: usize = 16;

/// Messages of one transaction.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message of an element begins.
    last: Option<usize>,
}

impl Batch {
    /// Its first message gets this number.
    pub(super) fn new(sequence: u32) -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence, last: None };
        batch.frame(BATCH_BEGIN);
        batch
    }

    pub(super) fn add(&mut self, table: &str, entry: &Entry) {
        self.each(NEW_ELEMENT, table, entry);
    }

    pub(super) fn remove(&mut self, table: &str, entry: &Entry) {
        self.each(DELETE_ELEMENT, table, entry);
    }

    /// The bytes, and the number of the message whose answer ends the exchange; none without elements.
    pub(super) fn finish(mut self) -> Option<(Vec<u8>, u32)> {
        let last = self.last?;
        // Kernels answer in the order of the messages, so one asked-for answer is enough.
        let flags = &mut self.bytes[last + 6..last + 8];
        let asked = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
        flags.copy_from_slice(&asked.to_ne_bytes());
        let answered = self.sequence.wrapping_sub(1);
        self.frame(BATCH_END);
        Some((self.bytes, answered))
    }

    /// A message of its own that asks for a chain.
    pub(super) fn get_chain(sequence: u32, table: &str, chain: &str) -> Vec<u8> {
        let body = [text(CHAIN_TABLE, table), text(CHAIN_NAME, chain)].concat();
        message(GET_CHAIN, NLM_F_REQUEST | NLM_F_ACK, sequence, FAMILY_INET, 0, &body)
    }

    fn frame(&mut self, kind: u16) {
        self.push(message(kind, NLM_F_REQUEST, self.sequence, 0, NFTABLES, &[]));
    }

    fn push(&mut self, message: Vec<u8>) {
        self.bytes.extend(message);
        self.sequence = self.sequence.wrapping_add(1);
    }

    fn each(&mut self, kind: u16, table: &str, entry: &Entry) {
        let address = entry.allocation.address.octets();
        let mut source = entry.allocation.link.as_bytes().to_vec();
        source.resize(NAME, 0);
        source.extend(address);
        self.element(kind, table, "sources", &source, None);
        if let Some(port) = entry.allocation.host_port {
            let [high, low] = port.to_be_bytes();
            let [a, b, c, d] = address;
            self.element(kind, table, "published", &[high, low, 0, 0, a, b, c, d], None);
            self.element(kind, table, "ports", &[high, low], Some(&address));
        }
        if entry.build {
            self.element(kind, table, "builders", &address, None);
        }
        for grant in &entry.grants {
            let [high, low] = grant.port().to_be_bytes();
            let key = [address, grant.ip().octets(), [high, low, 0, 0]].concat();
            self.element(kind, table, "granted", &key, None);
        }
    }

    fn element(&mut self, kind: u16, table: &str, set: &str, key: &[u8], data: Option<&[u8]>) {
        let mut element = nested(ELEMENT_KEY, &attribute(VALUE, key));
        if let Some(data) = data {
            element.extend(nested(ELEMENT_DATA, &attribute(VALUE, data)));
        }
        let elements = nested(LIST_ELEMENTS, &nested(ELEMENT, &element));
        let body = [text(LIST_TABLE, table), text(LIST_SET, set), elements].concat();
        let flags = if kind == NEW_ELEMENT { NLM_F_REQUEST | NLM_F_CREATE } else { NLM_F_REQUEST };
        self.last = Some(self.bytes.len());
        self.push(message(kind, flags, self.sequence, FAMILY_INET, 0, &body));
    }
}

/// `struct nlmsghdr`, `struct nfgenmsg`, attributes; these are padded already.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = length(20 + body.len()).to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn length(bytes: usize) -> [u8; 4] {
    // A message is far below 64 KiB: names are checked, keys are fixed.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let size = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = size.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use super::super::Allocation;
    use super::*;

    fn entry() -> Entry {
        let address = "10.88.0.2".parse().unwrap();
        let allocation = Allocation { address, host_port: Some(20000), link: "mg0a580002".into() };
        Entry { allocation, build: true, grants: [SocketAddrV4::new([10, 0, 0, 5].into(), 5432)].into() }
    }

    /// Type, flags and number of every message; each is as long as it says and padded.
    fn headers(mut bytes: &[u8]) -> Vec<(u16, u16, u32)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
            found.push((half(4), half(6), word(8)));
            assert_eq!(word(0) % 4, 0);
            bytes = &bytes[word(0) as usize..];
        }
        found
    }

    #[test]
    fn a_batch_is_framed_numbered_and_answered_once() {
        let mut batch = Batch::new(7);
        batch.add("mogok", &entry());
        batch.remove("mogok", &entry());
        let (bytes, last) = batch.finish().unwrap();
        let found = headers(&bytes);
        assert_eq!(found.len(), 12);
        assert_eq!((found[0].0, found[11].0), (BATCH_BEGIN, BATCH_END));
        assert!(found.iter().map(|header| header.2).eq(7..19));
        let answered: Vec<u32> =
            found.iter().filter(|header| header.1 & NLM_F_ACK != 0).map(|header| header.2).collect();
        assert_eq!(answered, [last]);
        assert_eq!(last, 17);
    }

    #[test]
    fn nothing_to_do_is_nothing_to_send() {
        assert!(Batch::new(1).finish().is_none());
    }

    #[test]
    fn keys_are_padded_and_in_network_order() {
        let mut batch = Batch::new(1);
        batch.add("mogok", &entry());
        let (bytes, _) = batch.finish().unwrap();
        let has = |key: &[u8]| bytes.windows(key.len()).any(|window| window == key);
        assert!(has(b"mg0a580002\0\0\0\0\0\0\x0a\x58\x00\x02"));
        assert!(has(&[0x4e, 0x20, 0, 0, 10, 88, 0, 2]));
        assert!(has(&[10, 88, 0, 2, 10, 0, 0, 5, 0x15, 0x38, 0, 0]));
    }
}
