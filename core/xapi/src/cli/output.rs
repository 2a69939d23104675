//! What the client is told to print, and what it answers.
//!
//! A record is printed with its names aligned to the right, the first one to the left:
//!
//! ```text
//! uuid ( RO)              : 5bff...
//!           name-label ( RW): disk
//! ```
//!
//! With `--minimal` only the first value of each record is kept, and all of them are printed in one
//! line at the end, with commas between them and backslashes before commas inside.

use crate::http::ByteStream;
use thin_cli::{Command, Message, ProtocolError, Response};
use tokio::io::{AsyncReadExt, BufReader, BufWriter, ReadHalf, WriteHalf};

/// What comes from the client.
pub(super) type Input = BufReader<ReadHalf<Box<dyn ByteStream>>>;

/// Bytes of a frame with an answer; what follows it is bounded on its own.
const ANSWER_BYTES_MAX: u32 = 64;

/// A line of a record: a name and a value.
pub(super) type Pair = (String, String);

/// The client's end.
pub(super) struct Output {
    answers: Answers,
    printer: Printer,
    pub(super) minimal: bool,
    kept: Vec<String>,
}

/// Where the client is told what to do.
pub(super) struct Printer(BufWriter<WriteHalf<Box<dyn ByteStream>>>);

/// Where the client answers.
pub(super) struct Answers(Input);

/// Takes a connection apart: what comes in, and where to write.
pub(super) fn halves(stream: Box<dyn ByteStream>) -> (Input, Printer) {
    let (input, out) = tokio::io::split(stream);
    (BufReader::new(input), Printer(BufWriter::new(out)))
}

impl Printer {
    pub(super) async fn greet(&mut self) -> Result<(), ProtocolError> {
        thin_cli::write_greeting(&mut self.0).await
    }

    pub(super) async fn send(&mut self, command: Command) -> Result<(), ProtocolError> {
        thin_cli::write_message(&mut self.0, command).await
    }

    /// Prints on the standard error, as it is.
    pub(super) async fn stderr(&mut self, text: &str) -> Result<(), ProtocolError> {
        self.send(Command::PrintStderr(text.to_owned())).await
    }
}

impl Answers {
    /// Waits for the end of a transfer that the client makes; says whether it went well there.
    ///
    /// # Cancel safety
    /// None: a dropped call may have read half an answer.
    pub(super) async fn transferred(&mut self) -> Result<bool, ProtocolError> {
        loop {
            match thin_cli::read_message(&mut self.0, ANSWER_BYTES_MAX).await? {
                Message::Response(Response::Wait) => {}
                Message::Response(answer) => return Ok(answer == Response::Ok),
                other => return Err(ProtocolError::Unexpected(Box::new(other))),
            }
        }
    }
}

impl Output {
    pub(super) fn new(input: Input, printer: Printer) -> Self {
        Self {
            answers: Answers(input),
            printer,
            minimal: false,
            kept: Vec::new(),
        }
    }

    /// Both directions, to listen while something is printed.
    pub(super) fn halves(&mut self) -> (&mut Answers, &mut Printer) {
        (&mut self.answers, &mut self.printer)
    }

    /// Prints a remark; nothing with `--minimal`.
    pub(super) async fn remark(&mut self, text: &str) -> Result<(), ProtocolError> {
        if self.minimal {
            return Ok(());
        }
        self.send(Command::Print(text.to_owned())).await
    }

    /// Prints values, one per line.
    pub(super) async fn values(&mut self, values: &[String]) -> Result<(), ProtocolError> {
        if self.minimal {
            self.kept.extend(values.iter().map(|value| escape(value)));
            return Ok(());
        }
        for value in values {
            self.send(Command::Print(value.clone())).await?;
        }
        Ok(())
    }

    /// Prints one value on a line.
    pub(super) async fn value(&mut self, value: impl Into<String>) -> Result<(), ProtocolError> {
        self.values(&[value.into()]).await
    }

    /// Prints a record and an empty line.
    pub(super) async fn record(&mut self, record: &[Pair]) -> Result<(), ProtocolError> {
        if self.minimal {
            self.kept
                .extend(record.first().map(|(_, value)| escape(value)));
            return Ok(());
        }
        self.send(Command::Print(layout(record) + "\n")).await
    }

    /// Prints on the standard error, as it is.
    pub(super) async fn stderr(&mut self, text: &str) -> Result<(), ProtocolError> {
        self.printer.stderr(text).await
    }

    /// Prints what `--minimal` kept and ends the client with success.
    pub(super) async fn finish(&mut self) -> Result<(), ProtocolError> {
        if self.minimal {
            let line = std::mem::take(&mut self.kept).join(",");
            self.send(Command::Print(line)).await?;
        }
        self.exit(0).await
    }

    /// Ends the client.
    pub(super) async fn exit(&mut self, code: i32) -> Result<(), ProtocolError> {
        self.send(Command::Exit(code)).await
    }

    /// Asks the user to type `yes`; says whether they did.
    pub(super) async fn confirm(&mut self) -> Result<bool, ProtocolError> {
        self.send(Command::Print("Type 'yes' to continue".to_owned()))
            .await?;
        self.send(Command::Prompt).await?;
        let typed = thin_cli::read_blob(&mut self.answers.0).await?;
        let typed = String::from_utf8_lossy(&typed).trim().to_owned();
        let yes = typed.eq_ignore_ascii_case("yes");
        if !yes {
            self.send(Command::Print(format!("Aborted (you typed: '{typed}')")))
                .await?;
        }
        Ok(yes)
    }

    pub(super) async fn send(&mut self, command: Command) -> Result<(), ProtocolError> {
        self.printer.send(command).await
    }

    /// Waits until the client is gone. One that speaks out of turn counts as gone.
    pub(super) async fn gone(&mut self) {
        _ = self.answers.0.read_u8().await;
    }
}

fn layout(record: &[Pair]) -> String {
    let width = 4 + record
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (at, (name, value)) in record.iter().enumerate() {
        text += &match at {
            0 => format!("{name:<width$}: {value}\n"),
            _ => format!("{name:>width$}: {value}\n"),
        };
    }
    text
}

fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace(',', r"\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_aligned_as_xe_aligns_them() {
        let record = [
            ("uuid ( RO)", "5bff"),
            ("name-label ( RW)", "a, b"),
            ("tags (SRW)", ""),
        ];
        let record = record.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let expected =
            "uuid ( RO)          : 5bff\n    name-label ( RW): a, b\n          tags (SRW): \n";
        assert_eq!(layout(&record), expected);
    }

    #[test]
    fn commas_and_backslashes_are_escaped_in_minimal_lists() {
        assert_eq!(escape(r"a,b\c"), r"a\,b\\c");
    }
}
