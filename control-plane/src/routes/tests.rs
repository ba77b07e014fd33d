//! Versions, acknowledgements and slow routers, without a wire; time is made short by [`Timing`].

use mogok_api::route::{RouteState, Upstream};

use super::*;

const PATIENT: Timing = Timing {
    router_lost: Duration::from_secs(60),
    settle: Duration::ZERO,
    release_bound: Duration::from_secs(60),
};

fn table(instances: &[InstanceId]) -> Table {
    let app: AppName = "fugafuga".parse().unwrap();
    let upstreams = instances
        .iter()
        .map(|id| Upstream {
            instance: *id,
            process: "web.1".parse().unwrap(),
            address: "10.88.0.1:20000".parse().unwrap(),
        })
        .collect();
    let route = AppRoute { app: app.clone(), hosts: Vec::new(), state: RouteState::Running, upstreams };
    Table::from([(app, route)])
}

fn ack(router: RouterId, message: &RouteMessage, draining: &[InstanceId]) -> RouteAck {
    let (RouteMessage::Snapshot { epoch, version, .. }
    | RouteMessage::Delta { epoch, version, .. }
    | RouteMessage::Heartbeat { epoch, version }) = message;
    RouteAck { router, epoch: *epoch, version: *version, draining: draining.to_vec() }
}

#[test]
fn an_instance_is_released_when_every_router_says_so() {
    let routes = Routes::new(Wake::default(), PATIENT);
    let (one, two) = (RouterId::new(), RouterId::new());
    let id = InstanceId::new();
    assert!(!routes.released(id), "before the first table nothing is known");
    let mut first = routes.subscribe(one).unwrap();
    assert!(first.try_recv().is_err());
    routes.publish(table(&[id]));
    let mut second = routes.subscribe(two).unwrap();
    let messages = [first.try_recv().unwrap(), second.try_recv().unwrap()];
    assert!(matches!(messages[0], RouteMessage::Snapshot { version: 1, .. }));
    assert!(matches!(messages[1], RouteMessage::Snapshot { version: 1, .. }));
    assert!(!routes.carried(&[id]));
    routes.acknowledge(ack(one, &messages[0], &[]));
    assert!(!routes.carried(&[id]), "the other has not acknowledged");
    routes.acknowledge(ack(two, &messages[1], &[]));
    assert!(routes.carried(&[id]) && !routes.carried(&[id, InstanceId::new()]));

    routes.publish(table(&[]));
    let delta = first.try_recv().unwrap();
    assert!(matches!(&delta, RouteMessage::Delta { from: 1, version: 2, upsert, .. } if upsert.len() == 1));
    assert!(!routes.released(id));
    routes.acknowledge(ack(one, &delta, &[id]));
    routes.acknowledge(ack(two, &delta, &[]));
    assert!(!routes.released(id), "a request is in flight");
    routes.acknowledge(ack(one, &delta, &[]));
    assert!(routes.released(id));
}

#[test]
fn acknowledgements_of_another_life_do_not_count() {
    let routes = Routes::new(Wake::default(), PATIENT);
    let router = RouterId::new();
    let id = InstanceId::new();
    routes.publish(table(&[]));
    let foreign = RouteAck { router, epoch: Epoch::new(), version: 1000, draining: Vec::new() };
    routes.acknowledge(foreign);
    assert!(!routes.released(id), "its table may still have the instance");
}

#[test]
fn a_lost_router_is_not_waited_for_and_an_unknown_one_is() {
    let id = InstanceId::new();
    let routes = Routes::new(Wake::default(), Timing { router_lost: Duration::ZERO, ..PATIENT });
    routes.publish(table(&[id]));
    let _stream = routes.subscribe(RouterId::new()).unwrap();
    routes.publish(table(&[]));
    assert!(routes.released(id));
    let routes = Routes::new(Wake::default(), Timing { settle: Duration::from_secs(60), ..PATIENT });
    routes.publish(table(&[]));
    assert!(!routes.released(id), "routers may not have come back yet");
    let routes = Routes::new(Wake::default(), Timing { release_bound: Duration::ZERO, ..PATIENT });
    routes.publish(table(&[]));
    let _stream = routes.subscribe(RouterId::new()).unwrap();
    assert!(routes.released(id), "the wait has a bound");
}

#[test]
fn a_router_that_does_not_keep_up_is_cut_and_begins_again() {
    let routes = Routes::new(Wake::default(), PATIENT);
    let router = RouterId::new();
    let mut slow = routes.subscribe(router).unwrap();
    for at in 0..=QUEUE {
        routes.publish(table(&if at % 2 == 0 { vec![InstanceId::new()] } else { Vec::new() }));
    }
    let mut received = 0;
    while slow.try_recv().is_ok() {
        received += 1;
    }
    assert_eq!(received, QUEUE);
    assert_eq!(slow.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    let mut again = routes.subscribe(router).unwrap();
    assert!(matches!(again.try_recv(), Ok(RouteMessage::Snapshot { .. })));
    let _third = routes.subscribe(router).unwrap();
    assert_eq!(again.try_recv(), Err(mpsc::error::TryRecvError::Disconnected), "one stream per router");
}

#[test]
fn the_same_table_is_not_news() {
    let routes = Routes::new(Wake::default(), PATIENT);
    let mut stream = routes.subscribe(RouterId::new()).unwrap();
    routes.publish(table(&[]));
    routes.publish(table(&[]));
    assert!(stream.try_recv().is_ok() && stream.try_recv().is_err());
    routes.heartbeat();
    assert!(matches!(stream.try_recv(), Ok(RouteMessage::Heartbeat { version: 1, .. })));
}
