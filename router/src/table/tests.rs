//! Snapshots, deltas, gaps, and what the acknowledgement says of those that leave.

use super::*;
use crate::instance::Ticket;
use mogok_api::route::Upstream;

fn route(app: &str, upstreams: &[Upstream]) -> AppRoute {
    AppRoute {
        app: app.parse().unwrap(),
        hosts: vec![format!("{app}.mogok.test")],
        state: RouteState::Running,
        upstreams: upstreams.to_vec(),
    }
}

fn upstream(port: u16) -> Upstream {
    Upstream {
        instance: InstanceId::new(),
        process: "web.1".parse().unwrap(),
        address: ([127, 0, 0, 1], port).into(),
    }
}

#[test]
fn hosts_are_found_in_any_case_with_or_without_the_final_dot() {
    let tables = Arc::new(Tables::default());
    let mut keeper = Keeper::new(Arc::clone(&tables));
    let message =
        RouteMessage::Snapshot { epoch: Epoch::new(), version: 1, routes: vec![route("alpha", &[])] };
    assert_eq!(keeper.apply(message), Ok(true));
    let table = tables.load();
    assert!(table.app(b"alpha.mogok.test").is_some());
    assert!(table.app(b"ALPHA.mogok.Test.").is_some());
    assert!(table.app(b"beta.mogok.test").is_none());
    assert!(table.app(b"x.alpha.mogok.test").is_none());
    assert!(table.app(&[b'a'; 300]).is_none());
}

#[test]
fn a_message_that_does_not_follow_is_a_gap_and_changes_nothing() {
    let tables = Arc::new(Tables::default());
    let mut keeper = Keeper::new(Arc::clone(&tables));
    let epoch = Epoch::new();
    let delta = |epoch, from| RouteMessage::Delta {
        epoch,
        from,
        version: from + 1,
        upsert: vec![route("beta", &[])],
        remove: vec!["alpha".parse().unwrap()],
    };
    assert_eq!(keeper.apply(delta(epoch, 0)), Err(Gap::NoSnapshot));
    keeper.apply(RouteMessage::Snapshot { epoch, version: 5, routes: vec![route("alpha", &[])] }).unwrap();
    assert_eq!(keeper.apply(delta(epoch, 4)), Err(Gap::Version { have: 5, from: 4 }));
    assert_eq!(keeper.apply(delta(Epoch::new(), 5)), Err(Gap::Epoch));
    assert_eq!(
        keeper.apply(RouteMessage::Heartbeat { epoch, version: 6 }),
        Err(Gap::Version { have: 5, from: 6 })
    );
    assert!(tables.load().app(b"alpha.mogok.test").is_some());
    assert_eq!(keeper.apply(RouteMessage::Heartbeat { epoch, version: 5 }), Ok(false));
    assert_eq!(keeper.apply(delta(epoch, 5)), Ok(true));
    assert!(tables.load().app(b"alpha.mogok.test").is_none());
    assert!(tables.load().app(b"beta.mogok.test").is_some());
    assert_eq!(tables.load().position, Some(Position { epoch, version: 6 }));
}

#[test]
fn an_instance_that_left_drains_until_its_last_request_ends() {
    let tables = Arc::new(Tables::default());
    let mut keeper = Keeper::new(Arc::clone(&tables));
    let epoch = Epoch::new();
    let (old, new) = (upstream(1), upstream(2));
    keeper
        .apply(RouteMessage::Snapshot {
            epoch,
            version: 1,
            routes: vec![route("alpha", std::slice::from_ref(&old))],
        })
        .unwrap();
    let instance = Arc::clone(&tables.load().app(b"alpha.mogok.test").unwrap().instances[0]);
    let ticket = Ticket::take(&instance).unwrap();
    keeper
        .apply(RouteMessage::Delta {
            epoch,
            from: 1,
            version: 2,
            upsert: vec![route("alpha", std::slice::from_ref(&new))],
            remove: vec![],
        })
        .unwrap();
    assert_eq!(tables.draining(), [old.instance]);
    assert!(Ticket::take(&instance).is_none(), "a reader of the old table begins no request");
    drop(ticket);
    assert!(tables.draining().is_empty());
    let table = tables.load();
    assert_eq!(table.app(b"alpha.mogok.test").unwrap().instances[0].id, new.instance);
}

#[test]
fn an_instance_that_stays_keeps_its_counts() {
    let tables = Arc::new(Tables::default());
    let mut keeper = Keeper::new(Arc::clone(&tables));
    let epoch = Epoch::new();
    let stays = upstream(1);
    for version in 1..=2 {
        keeper
            .apply(RouteMessage::Snapshot {
                epoch,
                version,
                routes: vec![route("alpha", std::slice::from_ref(&stays))],
            })
            .unwrap();
        let instance = Arc::clone(&tables.load().app(b"alpha.mogok.test").unwrap().instances[0]);
        assert_eq!(instance.in_flight(), usize::try_from(version).unwrap() - 1);
        std::mem::forget(Ticket::take(&instance));
    }
}
