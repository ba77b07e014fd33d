//! Every time and size of the router in one value, so that tests can shorten what takes half a
//! minute in service. The defaults are those that developers of applications already expect.

use std::net::IpAddr;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Settings {
    /// From the last byte of the request sent to the first byte of the response (H12).
    pub first_byte: Duration,
    /// The longest silence of either side once a response, an upload or a tunnel is under way
    /// (H15 the app's, H28 the client's).
    pub rolling: Duration,
    /// To a TCP connection with an instance (H19).
    pub connect: Duration,
    /// How long an instance that could not be connected to gets no requests.
    pub aside: Duration,
    /// How long an unused connection to an instance is kept. Shorter than any usual application
    /// server's own limit (Puma 20 s, Node 5 s), so that a request seldom meets its closing.
    pub upstream_idle: Duration,
    /// How long a connection of a client may be without a request. Longer than nginx keeps its
    /// side (30 s in the configuration that this crate writes), for the same reason.
    pub client_idle: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// Requests that one instance may have under way, streams and tunnels included (H22).
    pub connections_per_instance: usize,
    /// Requests of one instance that may wait for their first byte (H11).
    pub backlog_per_instance: usize,
    /// Client connections in all; beyond it the kernel's accept queue holds them.
    pub clients: usize,
    /// How long a stop waits for what is in flight.
    pub grace: Duration,
    /// Request lines that wait for the control plane; beyond it they are dropped and counted.
    pub log_queue: usize,
    /// The addresses whose `X-Forwarded-*` are believed: nginx.
    pub fronts: Vec<IpAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(30),
            rolling: Duration::from_secs(55),
            connect: Duration::from_secs(5),
            aside: Duration::from_secs(5),
            upstream_idle: Duration::from_secs(4),
            client_idle: Duration::from_secs(75),
            head: Duration::from_secs(30),
            connections_per_instance: 1000,
            backlog_per_instance: 250,
            clients: 20_000,
            grace: Duration::from_secs(30),
            log_queue: 20_000,
            fronts: vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])],
        }
    }
}

impl Settings {
    /// Whether a peer's `X-Forwarded-*` are believed.
    #[must_use]
    pub fn is_front(&self, peer: IpAddr) -> bool {
        self.fronts.contains(&peer.to_canonical())
    }
}
