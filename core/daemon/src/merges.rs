//! Merging of layers in the background, as far as the records of an SR allow it.

use database::Value;
use std::sync::Arc;
use std::time::Duration;
use storage::{MergeRules, StorageManager};
use tokio_util::sync::CancellationToken;
use units::SrUuid;
use xapi::{Api, Caller, Origin};

/// How often an SR's records are tried to be read anew while another operation has the SR.
const SCANS_MAX: u32 = 5;

/// Time between two of them.
const SCAN_PAUSE: Duration = Duration::from_secs(2);

/// Merges until `stop`.
pub(crate) async fn run(
    storage: StorageManager,
    api: Arc<Api>,
    settle: Duration,
    stop: CancellationToken,
) {
    let rules = |sr: SrUuid| {
        let row = api.database().snapshot().by_uuid("SR", &sr.to_string());
        row.map_or_else(MergeRules::default, |row| rules(&row.get("other_config")))
    };
    let merged = |sr: SrUuid| {
        tokio::spawn(scan(Arc::clone(&api), sr));
    };
    storage.merge_until(settle, rules, merged, stop).await;
}

/// Has the records of the SR's VDIs say what they stand on now.
async fn scan(api: Arc<Api>, sr: SrUuid) {
    for _ in 0..SCANS_MAX {
        let row = api.database().snapshot().by_uuid("SR", &sr.to_string());
        let Some(row) = row else { return };
        let params = vec![Value::Ref(row.reference().clone())];
        match api
            .call(&Caller::new(Origin::Internal), "SR.scan", params)
            .await
        {
            Ok(_) => return,
            Err(error) => tracing::warn!(%sr, %error, "not scanned after layers were merged"),
        }
        tokio::time::sleep(SCAN_PAUSE).await;
    }
}

/// What `SR.other_config` leaves on; the keys are those that XenServer's clean-up reads.
fn rules(other_config: &Value) -> MergeRules {
    let off = |key: &str| match other_config {
        Value::Map(keys) => keys.get(key) == Some(&Value::from("false")),
        _ => false,
    };
    let (all, leaves) = (!off("gc") && !off("coalesce"), !off("leaf-coalesce"));
    MergeRules {
        parents: all,
        leaves: all && leaves,
        leaves_in_use: all && leaves && !off("online-leaf-coalesce"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_config_turn_merging_off_step_by_step() {
        let cases = [
            ("", [true, true, true]),
            ("gc", [false, false, false]),
            ("coalesce", [false, false, false]),
            ("leaf-coalesce", [true, false, false]),
            ("online-leaf-coalesce", [true, true, false]),
            ("folder", [true, true, true]),
        ];
        for (key, [parents, leaves, leaves_in_use]) in cases {
            let expected = MergeRules {
                parents,
                leaves,
                leaves_in_use,
            };
            let keys = Value::Map([(key.to_owned(), Value::from("false"))].into());
            assert_eq!(rules(&keys), expected, "{key}");
            let kept = Value::Map([(key.to_owned(), Value::from("true"))].into());
            assert_eq!(rules(&kept), MergeRules::default(), "{key}");
        }
    }
}
