//! Several instances of one app: requests are spread one by one, and what stops leaves no trace.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;
use mogok_api::instance::InstanceStatus;
use mogok_tests::Platform;

#[test]
fn requests_are_spread_over_three_instances_and_a_stop_frees_everything() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    platform.grant_paid_plan("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;
    dev.mogok(&app, &["scale", "web=3"])?;

    let mut served = BTreeMap::new();
    for _ in 0..60 {
        let process = platform.variable(&app, "MOGOK_PROCESS")?.unwrap_or_default();
        *served.entry(process).or_insert(0) += 1;
    }
    assert_eq!(served.keys().map(String::as_str).collect::<Vec<_>>(), ["web.1", "web.2", "web.3"]);
    assert!(served.values().all(|count| *count >= 10), "uneven: {served:?}");

    let instances: Vec<InstanceStatus> = serde_json::from_str(&platform.agent(&["ps", "--json"])?)?;
    let endpoints: Vec<_> = instances.iter().filter_map(|instance| instance.endpoint).collect();
    assert_eq!(endpoints.len(), 3);

    dev.mogok(&app, &["stop"])?;
    let answer = platform.visit(&app, "/")?;
    assert_eq!((answer.status, answer.error_code()), (503, Some("H14")));
    for endpoint in endpoints {
        assert!(TcpStream::connect_timeout(&endpoint, Duration::from_secs(1)).is_err(), "{endpoint} answers");
    }
    assert_eq!(platform.agent(&["ps", "--json"])?.trim(), "[]");

    dev.mogok(&app, &["start"])?;
    assert_eq!(platform.visit(&app, "/")?.status, 200);
    platform.finish()
}
