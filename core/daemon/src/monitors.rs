//! Feeds monitor plugins: each step of the metrics stream, and object changes of the classes their
//! manifests name.

use database::Database;
use metrics::{Row, Stream};
use plugin::{Event, MetricRow, PluginHost};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use xapi::wire_json;

/// Classes whose records hold what lets one act as somebody else; no plugin is told about them,
/// whatever its manifest asks for.
const PRIVATE: &[&str] = &["secret", "session", "subject", "user"];

/// Hands every step to every monitor until the stream ends.
pub(crate) async fn feed_metrics(plugins: Arc<PluginHost>, mut stream: Stream) {
    while let Some(step) = stream.next().await {
        let rows: Vec<MetricRow> = step.rows.iter().map(metric_row).collect();
        for monitor in plugins.monitors() {
            monitor.offer(Event::Metrics {
                time_s: step.time_s,
                rows: rows.clone(),
            });
        }
    }
}

fn metric_row(row: &Row) -> MetricRow {
    MetricRow {
        class: row.key.class.to_owned(),
        uuid: row.key.uuid.clone(),
        name: row.key.name.clone(),
        value: row.value,
    }
}

/// Hands every object change to the monitors until `stop` fires. A feed that fell too far behind
/// goes on from now: a monitor sees the next change of an object, not those it missed.
pub(crate) async fn feed_objects(
    plugins: Arc<PluginHost>,
    database: Database,
    stop: CancellationToken,
) {
    let mut revisions = database.subscribe();
    let mut seen = database.snapshot().revision();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = revisions.changed() => if changed.is_err() { return },
        }
        let snapshot = database.snapshot();
        let changes = match snapshot.changes_since(seen) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(%error, "object changes were missed by monitor plugins");
                seen = snapshot.revision();
                continue;
            }
        };
        seen = changes.revision;
        let monitors = plugins.monitors();
        if monitors.is_empty() {
            continue;
        }
        let added = changes.added.iter().map(|row| (row, "add"));
        let modified = changes.modified.iter().map(|row| (row, "mod"));
        let wanted = |class: &str| {
            !PRIVATE.contains(&class) && monitors.iter().any(|monitor| monitor.wants(class))
        };
        for (row, operation) in added.chain(modified) {
            if wanted(row.class()) {
                let record_json = wire_json(&row.record());
                offer(&monitors, row.class(), row.uuid(), operation, &record_json);
            }
        }
        for gone in changes.deleted.iter().filter(|gone| wanted(&gone.class)) {
            offer(&monitors, &gone.class, &gone.uuid, "del", "");
        }
    }
}

fn offer(
    monitors: &[plugin::Monitor],
    class: &str,
    uuid: &str,
    operation: &str,
    record_json: &str,
) {
    for monitor in monitors {
        monitor.offer(Event::Object {
            class: class.to_owned(),
            uuid: uuid.to_owned(),
            operation: operation.to_owned(),
            record_json: record_json.to_owned(),
        });
    }
}
