//! The properties of a placement.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn candidate() -> impl Strategy<Value = Candidate> {
    let policy = prop_oneof![4 => Just(NodePolicy::Active), 1 => Just(NodePolicy::Cordoned), 1 => Just(NodePolicy::Draining)];
    (policy, prop::bool::weighted(0.8), 0u64..8000, 0u32..12, 0u64..4000, 0u32..6).prop_map(
        |(policy, online, memory, containers, used, running)| Candidate {
            id: NodeId::new(),
            policy,
            online,
            capacity: Resources { memory_bytes: memory * MIB, containers },
            used: Resources { memory_bytes: used * MIB, containers: running },
            apps: HashMap::new(),
        },
    )
}

/// Containers of two apps.
fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let apps = [AppId::new(), AppId::new()];
    prop::collection::vec((0..2usize, 1u64..2048), 0..30).prop_map(move |asks| {
        let ask = |(app, memory): (usize, u64)| Ask {
            app: apps[app],
            needs: Resources { memory_bytes: memory * MIB, containers: 1 },
        };
        asks.into_iter().map(ask).collect()
    })
}

proptest! {
    #[test]
    fn no_node_goes_over_its_capacity_and_none_that_is_closed_gets_anything(
        nodes in prop::collection::vec(candidate(), 0..6),
        asks in asks(),
    ) {
        let placed = place(&nodes, &asks);
        prop_assert_eq!(placed.len(), asks.len());
        prop_assert_eq!(&placed, &place(&nodes, &asks), "the same input, the same placement");
        for node in &nodes {
            let got = |at: usize| placed[..at].iter().zip(&asks)
                .filter(|(on, _)| **on == Ok(node.id))
                .fold(node.used, |used, (_, ask)| used.plus(ask.needs));
            let total = got(asks.len());
            if total != node.used {
                prop_assert!(node.online && node.policy == NodePolicy::Active);
                prop_assert!(total.within(node.capacity));
            }
            for (at, (on, ask)) in placed.iter().zip(&asks).enumerate() {
                if on.is_err() && node.online && node.policy == NodePolicy::Active {
                    prop_assert!(!got(at).plus(ask.needs).within(node.capacity), "refused in spite of room");
                }
            }
        }
    }

    #[test]
    fn an_app_is_spread_over_all_nodes_that_have_room(count in 1usize..6, asked in 1usize..20) {
        let capacity = Resources { memory_bytes: u64::MAX, containers: 1000 };
        let node = || Candidate {
            id: NodeId::new(),
            policy: NodePolicy::Active,
            online: true,
            capacity,
            used: Resources::default(),
            apps: HashMap::new(),
        };
        let nodes: Vec<_> = std::iter::repeat_with(node).take(count).collect();
        let ask = Ask { app: AppId::new(), needs: Resources { memory_bytes: 1, containers: 1 } };
        let placed = place(&nodes, &vec![ask; asked]);
        let on = |node: &Candidate| placed.iter().filter(|on| **on == Ok(node.id)).count();
        let most = nodes.iter().map(on).max().unwrap_or_default();
        let least = nodes.iter().map(on).min().unwrap_or_default();
        prop_assert!(most - least <= 1, "{most} and {least}");
    }
}

#[test]
fn a_refusal_names_the_reason_nearest_to_a_yes() {
    let ask = Ask { app: AppId::new(), needs: Resources { memory_bytes: 1, containers: 1 } };
    let node = |policy, online| Candidate {
        id: NodeId::new(),
        policy,
        online,
        capacity: Resources::default(),
        used: Resources::default(),
        apps: HashMap::new(),
    };
    let refusal = |nodes: &[Candidate]| place(nodes, &[ask])[0];
    let lost = node(NodePolicy::Active, false);
    let closed = node(NodePolicy::Cordoned, true);
    let full = node(NodePolicy::Active, true);
    assert_eq!(refusal(&[]), Err(Unfit::NoNode));
    assert_eq!(refusal(std::slice::from_ref(&lost)), Err(Unfit::Lost));
    assert_eq!(refusal(&[closed.clone(), lost.clone()]), Err(Unfit::Closed));
    assert_eq!(refusal(&[full, lost, closed]), Err(Unfit::Full));
}
