//! Requests spread over the instances, and go elsewhere when nothing of them was sent.

use crate::harness::{App, Stage, alpha, closed, ok, upstream};

#[tokio::test]
async fn requests_spread_over_the_instances() {
    let apps =
        [App::replies(ok("one")).await, App::replies(ok("two")).await, App::replies(ok("three")).await];
    let stage = Stage::new(vec![alpha(apps.iter().map(App::upstream).collect())]).await;
    let mut counts = [0; 3];
    for _ in 0..150 {
        let response = stage.get("/", "").await;
        let which = ["one", "two", "three"].iter().position(|body| response.ends_with(body)).unwrap();
        counts[which] += 1;
    }
    assert!(counts.iter().all(|count| (20..=90).contains(count)), "{counts:?}");
}

#[tokio::test]
async fn a_refused_request_goes_to_another_instance_body_and_all() {
    let app = App::script(|mut conn| async move {
        while conn.head().await.is_some() {
            let body = conn.take(5).await;
            conn.send(&ok(&String::from_utf8(body).unwrap())).await;
        }
    })
    .await;
    for _ in 0..8 {
        let routes = vec![alpha(vec![upstream(closed().await), app.upstream()])];
        let stage = Stage::new(routes).await;
        let response = stage
            .raw(b"POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
            .await;
        assert!(response.ends_with("\r\n\r\nhello"), "{response}");
    }
}

#[tokio::test]
async fn a_request_that_was_sent_goes_nowhere_else() {
    let closes = || App::script(|mut conn| async move { drop(conn.head().await) });
    let (one, two) = (closes().await, closes().await);
    let stage = Stage::new(vec![alpha(vec![one.upstream(), two.upstream()])]).await;
    assert_eq!(crate::harness::code(&stage.get("/", "").await), Some("H13"));
    assert_eq!(*one.connections.lock().unwrap() + *two.connections.lock().unwrap(), 1);
}
