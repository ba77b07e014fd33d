//! The operator's commands: `ps`, `inspect`, `logs`, `events` over the agent's socket, as tables and
//! lines for people or as the API's JSON.
//!
//! Invariant: nothing a tenant wrote reaches a terminal with its control characters.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use futures_util::{StreamExt, stream};
use mogok_api::agent::client::{AgentAddress, AgentClient};
use mogok_api::agent::{AgentEvent, LogRecord, LogStream, ReclaimRequest, Usage};
use mogok_api::id::InstanceId;
use mogok_api::instance::InstanceStatus;

/// Requests under way for the figures of `ps`.
const ASKED_AT_ONCE: usize = 16;

/// A client of the agent behind a socket.
///
/// # Errors
/// Never for a Unix socket, in practice.
pub fn client(socket: &Path) -> Result<AgentClient> {
    Ok(AgentClient::new(AgentAddress::Unix(socket.to_owned()), None)?)
}

fn print_json<T: serde::Serialize>(out: &mut impl Write, value: &T) -> Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

/// All instances, with what they use; as JSON their statuses.
///
/// # Errors
/// When the agent does not answer.
pub async fn ps(client: &AgentClient, json: bool, out: &mut impl Write) -> Result<()> {
    let statuses = client.instances().await?;
    if json {
        return print_json(out, &statuses);
    }
    let mut usages = BTreeMap::new();
    let details =
        stream::iter(&statuses).map(|status| client.instance(status.id)).buffer_unordered(ASKED_AT_ONCE);
    // One that has gone in the meantime has no figures.
    for detail in details.filter_map(async |detail| detail.ok()).collect::<Vec<_>>().await {
        usages.extend(detail.usage.map(|usage| (detail.spec.id, usage)));
    }
    write!(out, "{}", table(&statuses, &usages))?;
    Ok(())
}

fn table(statuses: &[InstanceStatus], usages: &BTreeMap<InstanceId, Usage>) -> String {
    let mut text = format!(
        "{:<36}  {:<20} {:<12} {:<8} {:<9} {:>8} {:>9} {:>8} {:>5} {:<21} {}\n",
        "INSTANCE",
        "APP",
        "PROCESS",
        "RELEASE",
        "PHASE",
        "RESTARTS",
        "CPU",
        "MEMORY",
        "PIDS",
        "ENDPOINT",
        "FAILURE"
    );
    for status in statuses {
        let release = status.release.map(|release| release.to_string()).unwrap_or_default();
        let endpoint = status.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
        let failure = status.failure.as_ref().map_or(String::new(), |failure| printable(&failure.message));
        let (cpu, memory, pids) = usages.get(&status.id).map(used).unwrap_or_default();
        let line = format!(
            "{:<36}  {:<20} {:<12} {:<8} {:<9} {:>8} {:>9} {:>8} {:>5} {:<21} {}",
            status.id.to_string(),
            status.app,
            status.process,
            release,
            status.phase,
            status.restarts,
            cpu,
            memory,
            pids,
            endpoint,
            failure
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// CPU time, memory, processes and threads.
fn used(usage: &Usage) -> (String, String, String) {
    let tenths = usage.cpu_usec / 100_000;
    let cpu = format!("{}.{} s", tenths / 10, tenths % 10);
    (cpu, format!("{} MiB", usage.memory_bytes >> 20), usage.pids.to_string())
}

/// Takes memory back from an instance and says what it uses then.
///
/// # Errors
/// When the agent does not answer, or its host cannot do that.
pub async fn reclaim(
    client: &AgentClient,
    id: InstanceId,
    bytes: u64,
    json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let reclaimed = client.reclaim(id, ReclaimRequest { bytes }).await?;
    if json {
        return print_json(out, &reclaimed);
    }
    let words = if reclaimed.whole { "done" } else { "not all could be taken" };
    writeln!(out, "{words}: it uses {} bytes", reclaimed.memory_bytes)?;
    Ok(())
}

/// One instance in full.
///
/// # Errors
/// When the agent does not answer or has no such instance.
pub async fn inspect(client: &AgentClient, id: InstanceId, json: bool, out: &mut impl Write) -> Result<()> {
    let detail = client.instance(id).await?;
    if json {
        return print_json(out, &detail);
    }
    // JSON escapes control characters, and the rest of it reads well enough.
    let mut shown = serde_json::to_value(&detail)?;
    if let Some(env) = shown.pointer_mut("/spec/env").and_then(|env| env.as_object_mut()) {
        // Config vars are the tenants' secrets; over a shoulder their names are enough.
        env.values_mut().for_each(|value| *value = "(hidden, --json shows it)".into());
    }
    serde_json::to_writer_pretty(&mut *out, &shown)?;
    writeln!(out)?;
    Ok(())
}

/// The output of one instance.
///
/// # Errors
/// When the agent does not answer or the stream breaks.
pub async fn logs(
    client: &AgentClient,
    id: InstanceId,
    follow: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let mut records = client.instance_logs(id, follow).await?;
    while let Some(record) = records.next().await.context("the stream of logs broke")? {
        if json {
            print_json(out, &record)?;
        } else {
            writeln!(out, "{}", log_line(&record))?;
        }
        out.flush()?;
    }
    Ok(())
}

fn log_line(record: &LogRecord) -> String {
    let at = record.at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let source = match record.stream {
        LogStream::Platform => "mogok",
        LogStream::Stdout | LogStream::Stderr => record.app.as_str(),
    };
    format!("{at} {source}[{}]: {}", record.process, printable(&record.line))
}

/// What happens to instances.
///
/// # Errors
/// When the agent does not answer or the stream breaks.
pub async fn events(client: &AgentClient, follow: bool, json: bool, out: &mut impl Write) -> Result<()> {
    let mut events = client.events(None).await?;
    while let Some(event) = events.next().await.context("the stream of events broke")? {
        if json {
            print_json(out, &event)?;
        } else {
            match &event {
                AgentEvent::Snapshot { instances, .. } => {
                    write!(out, "{}", table(instances, &BTreeMap::new()))?
                }
                AgentEvent::Changed { instance, .. } => {
                    let failure = instance.failure.as_ref().map_or("", |failure| &failure.message);
                    let (id, app, process, phase) =
                        (instance.id, &instance.app, &instance.process, instance.phase);
                    let line = format!("{id}  {app} {process} {phase} {}", printable(failure));
                    writeln!(out, "{}", line.trim_end())?;
                }
                AgentEvent::Warned { id, warning, .. } => {
                    writeln!(out, "{id}  warning: {}", printable(&warning.message))?;
                }
                AgentEvent::Removed { id, .. } => writeln!(out, "{id}  removed")?,
                AgentEvent::Heartbeat { .. } => {}
            }
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
    }
    Ok(())
}

/// The text without what a terminal would act on, or what turns the text around it (UAX #9).
fn printable(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if c == '\t' { ' ' } else { c })
        .flat_map(|c| {
            let escaped = obeyed(c).then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_people() {
        let usage = Usage { cpu_usec: 12_345_678, memory_bytes: 200 << 20, pids: 7, ..Usage::default() };
        let shown = ["12.3 s", "200 MiB", "7"].map(str::to_owned);
        assert_eq!(<[String; 3]>::from(used(&usage)), shown);
    }

    #[test]
    fn a_terminal_gets_no_escapes() {
        assert_eq!(printable("a\tb\u{1b}[2Jc\u{9b}é"), "a b\\u{1b}[2Jc\\u{9b}é");
        assert_eq!(printable("\u{202e}a\u{2069}שלום"), "\\u{202e}a\\u{2069}שלום");
    }
}
