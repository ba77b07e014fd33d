//! The two HTTP contracts as OpenAPI documents, generated from the types and the route lists below.
//!
//! The documents are checked in under `api/openapi/`; a test fails when they are stale, and
//! `MOGOK_BLESS=1 cargo test -p mogok-api` writes them anew.

mod agent;
mod control;
mod document;

pub use agent::agent;
pub use control::control;

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn check(name: &str, document: &utoipa::openapi::OpenApi) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi").join(name);
        let wanted = document.to_pretty_json().unwrap() + "\n";
        if std::env::var_os("MOGOK_BLESS").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{} is stale: run MOGOK_BLESS=1 cargo test -p mogok-api and commit it",
            path.display()
        );
    }

    #[test]
    fn the_checked_in_documents_are_current() {
        check("agent.json", &super::agent());
        check("control.json", &super::control());
    }
}
