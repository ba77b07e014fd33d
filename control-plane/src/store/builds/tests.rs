use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
use mogok_api::instance::ContainerKind;

use super::super::apps::AppRow;
use super::super::number;
use super::super::releases::NewRelease;
use super::*;

const COMMIT: &str = "4f2a91c0000000000000000000000000000000ab";

async fn store() -> (tempfile::TempDir, Store, AppRow) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Store::sqlite_url(&dir.path().join("mogok.db"))).await.unwrap();
    let user = store.create_user("a@example.com", "hash").await.unwrap();
    let app = store.create_app(user.id, &"fugafuga".parse().unwrap(), "secret").await.unwrap();
    (dir, store, app)
}

async fn count(store: &Store, sql: &'static str) -> u64 {
    let row = sqlx::query(sql).fetch_one(&store.pool).await.unwrap();
    number(&row, "n").unwrap()
}

fn digest(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64)).parse().unwrap()
}

fn handed(app: &AppRow) -> Handed {
    let spec = InstanceSpec {
        id: InstanceId::new(),
        app: app.name.clone(),
        process: "build.1".parse().unwrap(),
        release: None,
        kind: ContainerKind::Build,
        image: "ruby-build".parse().unwrap(),
        image_digest: None,
        package: None,
        package_mounts: Vec::new(),
        blobs: Vec::new(),
        output: None,
        command: vec!["/usr/lib/mogok/build".to_owned()],
        env: BTreeMap::new(),
        limits: Limits::build(),
        grants: Default::default(),
        listens: false,
        health: HealthCheck::default(),
        restart: RestartPolicy::Never,
        stop_grace_s: 5,
        max_runtime_s: Some(900),
    };
    let processes = [(ProcessType::web(), "puma".to_owned())].into();
    Handed { node: NodeId::new(), spec, processes }
}

fn success(letter: char) -> Success {
    let release = NewRelease {
        description: "build 4f2a91c".to_owned(),
        commit: Some(COMMIT.to_owned()),
        package: digest(letter),
        image: "ruby".parse().unwrap(),
        image_digest: None,
        processes: [(ProcessType::web(), "puma".to_owned())].into(),
    };
    Success { release, package: digest(letter), package_bytes: 6_700_000 }
}

#[tokio::test]
async fn an_app_has_one_build_under_way() {
    let (_dir, store, app) = store().await;
    let first = store.create_build(app.id, COMMIT).await.unwrap();
    assert_eq!(first.state, BuildState::Queued);
    assert_eq!(store.build(first.id).await.unwrap().unwrap(), first);
    let second = store.create_build(app.id, COMMIT).await.unwrap_err();
    assert!(matches!(second, CreateBuildError::Busy { running } if running == first.id), "{second}");
    let gone = store.create_build(AppId::new(), COMMIT).await.unwrap_err();
    assert!(matches!(gone, CreateBuildError::NoApp), "{gone}");
    assert!(store.end_build(first.id, BuildState::Cancelled, Some("cancelled")).await.unwrap());
    assert!(!store.end_build(first.id, BuildState::Failed, Some("late")).await.unwrap());
    let second = store.create_build(app.id, COMMIT).await.unwrap();
    assert_eq!(store.builds(app.id, 10).await.unwrap()[0].id, second.id);
    assert_eq!(store.open_builds().await.unwrap(), [second]);
}

#[tokio::test]
async fn a_success_makes_the_release_once() {
    let (_dir, store, app) = store().await;
    let build = store.create_build(app.id, COMMIT).await.unwrap();
    let handed = handed(&app);
    // Only what runs can succeed.
    let early = store.succeed_build(&build, &success('a')).await.unwrap_err();
    assert!(matches!(early, SuccessError::Ended), "{early}");
    assert_eq!(count(&store, "SELECT COUNT(*) AS n FROM releases").await, 0);

    assert!(store.start_build(build.id, &handed).await.unwrap());
    assert!(!store.start_build(build.id, &handed).await.unwrap());
    let running = store.build(build.id).await.unwrap().unwrap();
    assert_eq!((running.state, running.handed.as_ref()), (BuildState::Running, Some(&handed)));

    let release = store.succeed_build(&running, &success('a')).await.unwrap();
    assert_eq!(release.number, ReleaseNumber::FIRST);
    let again = store.succeed_build(&running, &success('a')).await.unwrap_err();
    assert!(matches!(again, SuccessError::Ended), "{again}");
    assert_eq!(count(&store, "SELECT COUNT(*) AS n FROM releases").await, 1);

    let shown = store.build(build.id).await.unwrap().unwrap().shown();
    assert_eq!((shown.state, shown.release), (BuildState::Succeeded, Some(ReleaseNumber::FIRST)));
    assert_eq!((shown.package, shown.package_bytes), (Some(digest('a')), Some(6_700_000)));
    assert_eq!(store.last_success(app.id).await.unwrap().unwrap().id, build.id);
    let app = store.app(app.id).await.unwrap().unwrap();
    assert_eq!(app.current_release, Some(release.id));
}

#[tokio::test]
async fn a_cancelled_build_makes_no_release() {
    let (_dir, store, app) = store().await;
    let build = store.create_build(app.id, COMMIT).await.unwrap();
    store.start_build(build.id, &handed(&app)).await.unwrap();
    assert!(store.end_build(build.id, BuildState::Cancelled, None).await.unwrap());
    let late = store.succeed_build(&build, &success('a')).await.unwrap_err();
    assert!(matches!(late, SuccessError::Ended), "{late}");
    assert_eq!(count(&store, "SELECT COUNT(*) AS n FROM releases").await, 0);
    assert!(store.app(app.id).await.unwrap().unwrap().current_release.is_none());
}

#[tokio::test]
async fn the_packages_of_the_newest_releases_and_the_current_one_are_kept() {
    let (_dir, store, app) = store().await;
    let mut first = None;
    for letter in "abcde".chars() {
        let release = store.create_release(app.id, &success(letter).release).await.unwrap();
        first = first.or(Some(release.id));
    }
    let kept = async || {
        let mut digests = store.packages_in_use(2).await.unwrap();
        digests.sort();
        digests
    };
    assert_eq!(kept().await, [digest('d'), digest('e')]);
    sqlx::query("UPDATE apps SET current_release = $1")
        .bind(first.unwrap().to_string())
        .execute(&store.pool)
        .await
        .unwrap();
    assert_eq!(kept().await, [digest('a'), digest('d'), digest('e')]);
}

#[tokio::test]
async fn old_builds_are_forgotten_and_open_ones_never() {
    let (_dir, store, app) = store().await;
    let mut ids = Vec::new();
    for _ in 0..KEPT + 3 {
        let build = store.create_build(app.id, COMMIT).await.unwrap();
        store.end_build(build.id, BuildState::Failed, Some("x")).await.unwrap();
        ids.push(build.id);
    }
    let open = store.create_build(app.id, COMMIT).await.unwrap();
    let mut forgotten = store.forget_builds(app.id).await.unwrap();
    forgotten.sort();
    assert_eq!(forgotten, ids[..3]);
    assert_eq!(store.builds(app.id, 100).await.unwrap().len(), usize::try_from(KEPT).unwrap() + 1);
    assert!(store.build(open.id).await.unwrap().is_some());
}
