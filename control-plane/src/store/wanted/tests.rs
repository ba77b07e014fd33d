use mogok_api::id::UserId;
use sqlx::Row;

use super::*;

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    owner: UserId,
    app: AppId,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Store::sqlite_url(&dir.path().join("db"))).await.unwrap();
    let owner = store.create_user("dev@example.com", "hash").await.unwrap().id;
    let app = store.create_app(owner, &"fugafuga".parse().unwrap(), "secret").await.unwrap().id;
    World { _dir: dir, store, owner, app }
}

fn built() -> NewRelease {
    NewRelease {
        description: "build 4f2a91c".to_owned(),
        commit: Some("4f2a91c".to_owned()),
        package: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
        image: "ruby".parse().unwrap(),
        image_digest: None,
        processes: [("web".parse().unwrap(), "puma".to_owned())].into(),
    }
}

fn change(vars: &[(&str, Option<&str>)]) -> ConfigChange {
    vars.iter().map(|(name, value)| (name.parse().unwrap(), value.map(str::to_owned))).collect()
}

fn formation(text: &[(&str, u32)]) -> Formation {
    text.iter().map(|(kind, count)| (kind.parse().unwrap(), *count)).collect()
}

async fn deploys(world: &World) -> Vec<(String, String)> {
    sqlx::query("SELECT action, state FROM deploys WHERE app_id = $1 ORDER BY id")
        .bind(world.app.to_string())
        .fetch_all(&world.store.pool)
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get("action"), row.get("state")))
        .collect()
}

#[tokio::test]
async fn an_app_starts_only_what_was_built() {
    let w = world().await;
    assert!(matches!(w.store.start_app(w.app).await, Err(WantedError::NothingBuilt)));
    assert!(matches!(w.store.restart_app(w.app).await, Err(WantedError::Stopped)));
    w.store.create_release(w.app, &built()).await.unwrap();
    w.store.start_app(w.app).await.unwrap();
    w.store.stop_app(w.app).await.unwrap();
    assert!(!w.store.app(w.app).await.unwrap().unwrap().running);
    let states: Vec<_> = deploys(&w).await;
    assert_eq!(states, [("start".into(), "superseded".into()), ("stop".into(), "running".into())]);
}

#[tokio::test]
async fn a_release_without_a_wanted_process_does_not_start() {
    let w = world().await;
    let worker = NewRelease { processes: [("worker".parse().unwrap(), "x".to_owned())].into(), ..built() };
    w.store.create_release(w.app, &worker).await.unwrap();
    let error = w.store.start_app(w.app).await.unwrap_err();
    assert!(matches!(error, WantedError::NothingToRun { .. }) && error.to_string().contains("worker"));
}

#[tokio::test]
async fn a_build_of_a_running_app_deploys_itself() {
    let w = world().await;
    w.store.create_release(w.app, &built()).await.unwrap();
    assert!(deploys(&w).await.is_empty());
    w.store.start_app(w.app).await.unwrap();
    let second = w.store.create_release(w.app, &built()).await.unwrap();
    assert_eq!(second.number.get(), 2);
    assert_eq!(deploys(&w).await.last().unwrap(), &("release".to_owned(), "running".to_owned()));
}

#[tokio::test]
async fn config_makes_releases_and_a_rollback_brings_it_back() {
    let w = world().await;
    w.store.configure_app(w.app, &change(&[("A", Some("1"))])).await.unwrap();
    assert!(w.store.releases(w.app, 10).await.unwrap().is_empty(), "nothing to release yet");
    w.store.create_release(w.app, &built()).await.unwrap();
    w.store.configure_app(w.app, &change(&[("A", None), ("B", Some("secret"))])).await.unwrap();
    w.store.configure_app(w.app, &change(&[("B", Some("secret")), ("C", None)])).await.unwrap();
    let releases = w.store.releases(w.app, 10).await.unwrap();
    let told: Vec<_> = releases.iter().map(|r| r.description.as_str()).collect();
    assert_eq!(told, ["set B, unset A", "build 4f2a91c"], "no change, no release; no value in the text");
    assert!(deploys(&w).await.is_empty(), "a stopped app deploys nothing");

    let before = w.store.app(w.app).await.unwrap().unwrap();
    let target = w.store.rollback_target(&before, None).await.unwrap();
    assert_eq!(target.number.get(), 1);
    w.store.roll_back_app(w.app, target.number).await.unwrap();
    let app = w.store.app(w.app).await.unwrap().unwrap();
    assert_eq!(app.current_number.unwrap().get(), 3);
    assert_eq!(app.config.keys().map(ConfigVar::as_str).collect::<Vec<_>>(), ["A"]);
    let newest = &w.store.releases(w.app, 1).await.unwrap()[0];
    assert_eq!((newest.description.as_str(), &newest.config), ("rollback to v1", &app.config));

    let to = |number| ReleaseNumber::new(number).unwrap();
    assert!(matches!(w.store.roll_back_app(w.app, to(3)).await, Err(WantedError::AlreadyCurrent(_))));
    assert!(matches!(w.store.roll_back_app(w.app, to(9)).await, Err(WantedError::NoRelease(_))));
}

#[tokio::test]
async fn config_keeps_its_rules() {
    let w = world().await;
    let large = "x".repeat(CONFIG_BYTES - 1);
    w.store.configure_app(w.app, &change(&[("A", Some(&large))])).await.unwrap();
    let over = w.store.configure_app(w.app, &change(&[("B", Some(""))])).await.unwrap_err();
    assert!(matches!(over, WantedError::ConfigTooLarge { bytes: 65_537 }), "{over}");
    let port = w.store.configure_app(w.app, &change(&[("PORT", Some("80"))])).await.unwrap_err();
    assert!(matches!(port, WantedError::OwnVar(_)));
    let nul = w.store.configure_app(w.app, &change(&[("C", Some("a\0b"))])).await.unwrap_err();
    assert!(matches!(nul, WantedError::NulInValue(_)));
}

#[tokio::test]
async fn the_formation_keeps_to_plan_and_release() {
    let w = world().await;
    let scale = |plan, text: &[(&str, u32)]| {
        let (store, app, change) = (w.store.clone(), w.app, formation(text));
        async move { store.scale_app(app, plan, &change).await }
    };
    assert!(matches!(scale(Plan::Free, &[("web", 2)]).await, Err(WantedError::OverPlan(_))));
    w.store.create_release(w.app, &built()).await.unwrap();
    assert!(matches!(scale(Plan::Paid, &[("worker", 1)]).await, Err(WantedError::NoSuchType { .. })));
    scale(Plan::Paid, &[("web", 3)]).await.unwrap();
    // Down again on the smaller plan.
    scale(Plan::Free, &[("web", 1)]).await.unwrap();
    assert_eq!(w.store.app(w.app).await.unwrap().unwrap().formation, formation(&[("web", 1)]));
}

#[tokio::test]
async fn a_type_that_the_release_has_not_is_refused_and_one_of_before_goes_with_a_zero() {
    let w = world().await;
    let scale = |text: &[(&str, u32)]| {
        let (store, app, change) = (w.store.clone(), w.app, formation(text));
        async move { store.scale_app(app, Plan::Paid, &change).await }
    };
    let kept = async || w.store.app(w.app).await.unwrap().unwrap().formation;
    // What a first release will have is not known yet.
    scale(&[("worker", 2)]).await.unwrap();
    w.store.create_release(w.app, &built()).await.unwrap();
    for count in [0, 1] {
        let refused = scale(&[("wroker", count)]).await.unwrap_err().to_string();
        assert_eq!(refused, "release v1 has no process type wroker: it has web", "count {count}");
    }
    assert_eq!(kept().await, formation(&[("web", 1), ("worker", 2)]));
    scale(&[("worker", 0), ("web", 0)]).await.unwrap();
    assert_eq!(kept().await, formation(&[("web", 0)]));
    assert!(scale(&[("worker", 0)]).await.is_err(), "it has gone");
}

#[tokio::test]
async fn a_web_count_of_none_lasts_while_the_release_has_no_web() {
    let w = world().await;
    let worker = NewRelease { processes: [("worker".parse().unwrap(), "work".to_owned())].into(), ..built() };
    w.store.create_release(w.app, &worker).await.unwrap();
    let change = formation(&[("web", 0), ("worker", 1)]);
    w.store.scale_app(w.app, Plan::Paid, &change).await.unwrap();
    assert_eq!(w.store.app(w.app).await.unwrap().unwrap().formation, change);
}

#[tokio::test]
async fn an_app_that_is_being_destroyed_keeps_its_name_until_it_is_gone() {
    let w = world().await;
    let name = "fugafuga".parse().unwrap();
    w.store.create_release(w.app, &built()).await.unwrap();
    w.store.start_app(w.app).await.unwrap();
    for _ in 0..2 {
        w.store.destroy_app(w.app).await.unwrap();
    }
    assert!(matches!(w.store.start_app(w.app).await, Err(WantedError::NoApp)));
    assert!(w.store.create_release(w.app, &built()).await.is_err());
    assert!(w.store.apps_of(w.owner).await.unwrap()[0].destroying);
    assert!(w.store.create_app(w.owner, &name, "s").await.is_err(), "the name is still in use");
    // The plan's one app is free again, though.
    w.store.create_app(w.owner, &"another".parse().unwrap(), "s").await.unwrap();
    assert!(!w.store.app_is_busy(w.app).await.unwrap());
    w.store.remove_app(w.app).await.unwrap();
    assert!(w.store.app(w.app).await.unwrap().is_none());
    assert!(w.store.releases(w.app, 10).await.unwrap().is_empty());
    assert!(deploys(&w).await.is_empty());
}
