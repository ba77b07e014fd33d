use super::*;

fn ruleset(egress: Egress) -> Ruleset {
    let config = NetworkConfig {
        pool: "10.88.0.0/16".parse().unwrap(),
        ports: (20000, 29999),
        egress,
        build_grants: vec!["10.88.0.1:8081".parse().unwrap()],
        bandwidth: NonZeroU32::new(100).unwrap(),
        connections: NonZeroU32::new(77).unwrap(),
        resolvers: vec![],
        table: "mogok".into(),
        state_dir: "/".into(),
    };
    Ruleset::new(&config, vec![Ipv4Addr::new(192, 0, 2, 53)])
}

fn entry(last: u8, host_port: Option<u16>, build: bool) -> Entry {
    let allocation =
        Allocation { address: Ipv4Addr::new(10, 88, 0, last), host_port, link: format!("mg0a58000{last}") };
    Entry { allocation, build, grants: BTreeSet::new() }
}

#[test]
fn replaces_the_table_whole_with_its_containers() {
    let entries = [entry(2, Some(20000), false), entry(3, None, true)];
    let text = ruleset(Egress::Deny).whole(entries.iter());
    assert!(text.starts_with("table inet mogok\ndelete table inet mogok\ntable inet mogok {"));
    assert!(text.contains("elements = { 20000 : 10.88.0.2 };"));
    assert!(text.contains("elements = { \"mg0a580002\" . 10.88.0.2, \"mg0a580003\" . 10.88.0.3 };"));
    assert!(text.contains("set builders { type ipv4_addr; elements = { 10.88.0.3 }; }"));
    assert!(text.contains("elements = { 10.88.0.1 . 8081 };"));
}

#[test]
fn only_the_internet_policy_lets_out_what_is_not_granted() {
    let deny = ruleset(Egress::Deny).whole([].iter());
    assert!(!deny.contains("ipv4 accept"));
    let internet = ruleset(Egress::Internet).whole([].iter());
    // What is forbidden is refused before anything is let out, but after what is granted.
    let place = |rule| internet.find(rule).unwrap();
    let (outbound, forbidden) = (place("chain outbound"), place("@forbidden goto refused"));
    assert!(outbound < forbidden && forbidden < place("meta nfproto ipv4 accept"));
    assert!(internet[outbound..forbidden].contains("@granted accept"));
    assert!(internet[outbound..forbidden].contains("th dport 53 accept"));
}

#[test]
fn connections_are_capped_on_both_ways_out() {
    let text = ruleset(Egress::Deny).whole([].iter());
    assert_eq!(text.matches("add @flows { ip saddr ct count over 77 } drop").count(), 2);
}

#[test]
fn links_on_their_way_out_stay_under_the_rules() {
    let rules = ruleset(Egress::Internet);
    let (low, high) = (rules.group().min(rules.dead_group()), rules.group().max(rules.dead_group()));
    assert_eq!(low + 1, high);
    let text = rules.whole([].iter());
    let named = text.matches("ifgroup").count();
    assert!(named > 0);
    assert_eq!(text.matches(&format!("{low}-{high}")).count(), named);
    assert!(text.contains(&format!("chain {PROBE} {{")));
}

#[test]
fn a_grant_is_one_containers() {
    let grants = BTreeSet::from(["10.0.0.5:5432".parse().unwrap(), "10.0.0.6:3306".parse().unwrap()]);
    let entries = [Entry { grants, ..entry(2, None, false) }, entry(3, None, false)];
    let text = ruleset(Egress::Deny).whole(entries.iter());
    assert!(
        text.contains("elements = { 10.88.0.2 . 10.0.0.5 . 5432, 10.88.0.2 . 10.0.0.6 . 3306 };"),
        "{text}"
    );
}
