//! Names on the host that belong to one agent, out of its cgroup's name: the nftables table, and the group of its links.

/// A table name that nft takes, another one for each cgroup: the name itself where it can be.
#[must_use]
pub fn table(cgroup: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if cgroup.chars().all(plain) {
        return cgroup.to_owned();
    }
    let like: String = cgroup
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if plain(c) { c } else { '_' })
        .take(22)
        .collect();
    format!("{like}_{:08x}", hash(cgroup))
}

/// The interface group of an agent's links, from its table's name: so links of an earlier pool stay under the
/// rules, which drop what they do not know. Never 0, the default group.
pub(super) fn group(table: &str) -> u32 {
    hash(table) & 0x3fff_ffff | 0x4000_0000
}

/// FNV-1a, 32 bits.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cgroup_has_a_table_of_its_own() {
        assert_eq!(table("mogok"), "mogok");
        assert_eq!(table("mogok_b"), "mogok_b");
        let names = ["mogok_b", "mogok-b", "mogok.b", "Mogok_b", "MOGOK-B", "mogok b"];
        let tables: std::collections::BTreeSet<_> = names.into_iter().map(table).collect();
        assert_eq!(tables.len(), names.len(), "{tables:?}");
        let groups: std::collections::BTreeSet<_> = tables.iter().map(|table| group(table) | 1).collect();
        assert_eq!(groups.len(), names.len());
        let long = table(&"Long-".repeat(12));
        assert!(long.len() == 31 && long.starts_with("long_"), "{long}");
    }
}
