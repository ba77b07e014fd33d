//! The table: on the terminal, as JSON for programs, as Markdown for the documents.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::peers::version;
use super::{Column, Finding};

/// Written whole each time; the text around the table is here, too.
const HEAD: &str = "# What holds in a container

Made by `make security-report`: do not edit. `mogok-probe` (`tests/probe`), a static program, runs unchanged in each
kind of container and tries what a hostile tenant would. **held** means that the attempt failed; beside it is the system
call's answer. A check that was not made, because it makes no sense there, is `-`. The columns of mogok must hold in every
row, which `make test` sees to. The others show where each row stands by default:

- runc with the specification of `runc spec`, which names no system call filter and no user namespace. Docker, Podman and
  containerd put more around it.
- lxc-execute with Debian's `common.conf`, without AppArmor, run by root.

\"reached\" means that the kernel looked at the arguments: the call was let through, and only they stopped it. \"Bombs\" are run in
containers that have limits, so not in the peers', whose defaults set none.

";

/// Behind the table: what holds by construction, and what stays visible.
const TAIL: &str = include_str!("readable.md");

fn rows(columns: &[Column]) -> Vec<&Finding> {
    let mut rows: Vec<&Finding> = Vec::new();
    for finding in columns.iter().flat_map(|column| &column.findings) {
        if !rows.iter().any(|row| row.check == finding.check) {
            rows.push(finding);
        }
    }
    // Rows of a threat stand together, threats in the order of their first row.
    let mut threats: Vec<&str> = Vec::new();
    for row in &rows {
        if !threats.contains(&row.threat.as_str()) {
            threats.push(&row.threat);
        }
    }
    rows.sort_by_key(|row| threats.iter().position(|threat| *threat == row.threat));
    rows
}

fn cell(finding: Option<&&Finding>) -> (String, String) {
    match finding {
        None => ("-".to_owned(), "not run".to_owned()),
        Some(finding) => {
            let held = match finding.held {
                Some(true) => "held",
                Some(false) => "NOT HELD",
                None => "-",
            };
            (held.to_owned(), finding.answer.clone())
        }
    }
}

/// Prints the table.
pub fn print(columns: &[Column]) {
    let answers: Vec<_> = columns.iter().map(Column::answers).collect();
    let mut threat = "";
    for row in rows(columns) {
        if row.threat != threat {
            threat = &row.threat;
            println!("\n{threat}");
        }
        print!("  {:<44}", row.check);
        for answers in &answers {
            let (held, answer) = cell(answers.get(row.check.as_str()));
            let answer: String = answer.chars().take(20).collect();
            print!(" {:<30}", format!("{held} ({answer})"));
        }
        println!();
    }
    println!();
    for column in columns {
        let count = |held| column.findings.iter().filter(|finding| finding.held == held).count();
        println!(
            "{:<12} {} held, {} not, {} not applicable",
            column.name,
            count(Some(true)),
            count(Some(false)),
            count(None)
        );
    }
}

/// Writes `target/security-report.json` and `docs/security-report.md`.
///
/// # Errors
/// When one cannot be written.
pub fn write(columns: &[Column]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("target/security-report.json");
    fs::write(&path, serde_json::to_vec_pretty(columns)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let path = root.join("docs/security-report.md");
    fs::write(&path, markdown(columns)?).with_context(|| format!("cannot write {}", path.display()))
}

fn markdown(columns: &[Column]) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut text = HEAD.to_owned();
    writeln!(
        text,
        "Linux {}, {}, lxc {}.",
        kernel.trim().split_once('-').map_or(kernel.trim(), |(version, _)| version),
        version("runc", "--version"),
        version("lxc-execute", "--version")
    )?;
    let answers: Vec<_> = columns.iter().map(Column::answers).collect();
    let mut threat = "";
    for row in rows(columns) {
        if row.threat != threat {
            threat = &row.threat;
            writeln!(text, "\n## {threat}\n")?;
            let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
            writeln!(text, "| check | {} |\n|---|{}", names.join(" | "), "---|".repeat(columns.len()))?;
        }
        write!(text, "| {} |", row.check)?;
        for answers in &answers {
            let (held, answer) = cell(answers.get(row.check.as_str()));
            let answer: String = answer.chars().take(80).collect();
            write!(text, " {held}: {} |", answer.replace('|', "\\|"))?;
        }
        text.push('\n');
    }
    text.push_str(TAIL);
    Ok(text)
}
