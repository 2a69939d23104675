//! The rows so far: kept, shown and written to the JSON file as they come, so that a run that is
//! ended half way has left what it measured and the next one can go on from there.

use crate::row::Row;
use crate::table;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Rows of this run, and of the one before where it goes on.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    json: Option<PathBuf>,
    /// Ids that are wanted; empty for all.
    only: Vec<String>,
}

impl Rows {
    /// Begins with nothing.
    pub(crate) fn new(json: Option<PathBuf>, only: Vec<String>) -> Self {
        Self {
            rows: Vec::new(),
            json,
            only,
        }
    }

    /// Begins with what an earlier run left in the file; with nothing if there is none.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub(crate) fn resume(json: PathBuf, only: Vec<String>) -> Result<Self> {
        let mut rows = Self::new(Some(json.clone()), only);
        if json.exists() {
            let text =
                fs::read_to_string(&json).with_context(|| format!("reading {}", json.display()))?;
            rows.rows = serde_json::from_str(&text)
                .with_context(|| format!("{} has no rows of a run", json.display()))?;
        }
        Ok(rows)
    }

    /// Whether an id is wanted.
    pub(crate) fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == id)
    }

    /// Whether a stage has been measured.
    pub(crate) fn has(&self, stage: &str) -> bool {
        self.rows.iter().any(|row| row.stage == stage)
    }

    /// Takes the rows of a stage, shows them and writes all there are.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn add(&mut self, stage: &str, rows: Vec<Row>) -> Result<()> {
        for mut row in rows {
            if !self.wants(&row.id) {
                continue;
            }
            stage.clone_into(&mut row.stage);
            eprintln!("  {}", table::brief(&row));
            self.rows.push(row);
        }
        match &self.json {
            Some(file) => write(file, &self.sorted()),
            None => Ok(()),
        }
    }

    /// By id; within one as they came.
    pub(crate) fn sorted(&self) -> Vec<Row> {
        let mut rows = self.rows.clone();
        rows.sort_by_key(|row| {
            let number = row.id.trim_start_matches(|c: char| !c.is_ascii_digit());
            number.parse::<u32>().unwrap_or(u32::MAX)
        });
        rows
    }
}

/// Replaces the file, so that it is never half a list.
fn write(file: &Path, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows)?;
    let new = file.with_extension("json.new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Aim;

    fn row(id: &str) -> Row {
        Row::alone(id, "x", "tmpfs", &[1.0], Aim::Most(2.0)).unwrap()
    }

    #[test]
    fn a_run_goes_on_where_the_last_one_ended() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("rows.json");
        let mut first = Rows::new(Some(json.clone()), Vec::new());
        first.add("a stage", vec![row("P10"), row("P2")]).unwrap();
        let second = Rows::resume(json, Vec::new()).unwrap();
        assert!(second.has("a stage") && !second.has("another"));
        let ids: Vec<String> = second.sorted().into_iter().map(|row| row.id).collect();
        assert_eq!(ids, ["P2", "P10"]);
    }

    #[test]
    fn a_file_of_something_else_is_not_gone_on_from() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("rows.json");
        fs::write(&json, "{}").unwrap();
        assert!(Rows::resume(json, Vec::new()).is_err());
    }

    #[test]
    fn rows_that_nobody_asked_for_are_left_out() {
        let mut rows = Rows::new(None, vec!["P1".to_owned()]);
        rows.add("a stage", vec![row("P1"), row("P6")]).unwrap();
        assert_eq!(rows.sorted().len(), 1);
    }
}
