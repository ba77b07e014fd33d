//! An agent's pool is its own: none is shared, and none is left behind.

use std::net::TcpStream;

use mogok_agent::network::survey;

use super::*;

fn host() -> [String; 2] {
    let addresses = run("ip", &["-4", "-oneline", "address", "show", "dev", "lo"]).unwrap();
    [addresses, run("ip", &["-4", "route", "show"]).unwrap()]
}

#[test]
fn an_agent_that_changes_its_pool_leaves_nothing_of_the_one_before() {
    on_a_host_of_its_own(async |lab| {
        let before = host();
        let first = lab.config();
        let second = NetworkConfig { pool: "10.89.0.0/16".parse().unwrap(), ..lab.config() };
        // Not stopped: an agent that leaves keeps its network for the one that comes.
        drop(Network::start(&first).await.unwrap());
        let [addresses, routes] = host();
        assert!(addresses.contains("10.88.0.1/32") && routes.contains("blackhole 10.88.0.0/16"), "{routes}");
        survey::pool(&second, false).await.unwrap();
        drop(Network::start(&second).await.unwrap());
        let [addresses, routes] = host();
        assert!(addresses.contains("10.89.0.1/32") && routes.contains("blackhole 10.89.0.0/16"), "{routes}");
        assert!(!addresses.contains("10.88.") && !routes.contains("10.88."), "{addresses}{routes}");
        // And back, after which all of it can be given back.
        survey::pool(&first, false).await.unwrap();
        Network::start(&first).await.unwrap().stop().await;
        let [addresses, routes] = host();
        assert!(!addresses.contains("10.8") && !routes.contains("10.8"), "{addresses}{routes}");
        assert_eq!(before[1], routes);
    });
}

#[test]
fn a_pool_is_known_by_whose_it_is_and_not_by_what_was_configured_once() {
    on_a_host_of_its_own(async |lab| {
        let config = lab.config();
        let network = Network::start(&config).await.unwrap();
        let (_, attachment) = web(&network).await;
        // Its own, also when its settings are lost.
        survey::pool(&config, false).await.unwrap();
        let narrower = NetworkConfig { pool: "10.88.0.0/24".parse().unwrap(), ..lab.config() };
        survey::pool(&narrower, false).await.unwrap();
        // Another agent's, which may have had the same pool itself.
        for pool in ["10.88.0.0/16", "10.88.0.0/24", "10.88.128.0/17", "10.80.0.0/12"] {
            let other =
                NetworkConfig { table: "mogok_other".into(), pool: pool.parse().unwrap(), ..lab.config() };
            for used in [false, true] {
                let taken = survey::pool(&other, used).await;
                assert!(matches!(taken, Err(NetworkError::PoolTaken { .. })), "{pool} {used}: {taken:?}");
            }
        }
        drop(attachment);
        network.stop().await;
    });
}

#[test]
fn the_gateway_and_the_routes_are_put_back() {
    on_a_host_of_its_own(async |lab| {
        let config = lab.config();
        let network = Network::start(&config).await.unwrap();
        let (id, attachment) = web(&network).await;
        let Allocation { link, .. } = attachment.allocation.clone();
        let (to, demand) = (endpoint(&attachment.allocation), Demand::new(App, true));
        dial(to).unwrap();
        // With the address the kernel drops all routes from it.
        run("ip", &["address", "delete", "10.88.0.1/32", "dev", "lo"]).unwrap();
        let begun = Instant::now();
        while TcpStream::connect_timeout(&to, PATIENCE).is_err() {
            assert!(begun.elapsed() < 10 * PATIENCE, "{:?}", host());
            // Others come and go all the time, as far as they can.
            let other = InstanceId::new();
            if network.attach(other, demand.clone()).await.is_ok() {
                network.detach(other).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // While no agent is there; the next one takes up what lives.
        drop(network);
        run("ip", &["link", "set", &link, "down"]).unwrap();
        run("ip", &["link", "set", &link, "up"]).unwrap();
        run("ip", &["address", "delete", "10.88.0.1/32", "dev", "lo"]).unwrap();
        survey::pool(&config, true).await.unwrap();
        let saved = Saved { id, demand, allocation: attachment.allocation.clone() };
        let (network, lost) = Network::start_with(&config, vec![saved]).await.unwrap();
        assert_eq!(lost, []);
        dial(to).unwrap();
        network.stop().await;
    });
}
