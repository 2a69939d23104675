//! The terminal joined to a console of the server, until control and ] is typed.

use crate::connect::Server;
use crate::transfer::Answer;
use anyhow::ensure;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

/// Control and ].
const LEAVE: u8 = 0x1d;

/// Opens `url` by `CONNECT` and copies both ways.
pub(crate) async fn connect(server: &Server, url: &str) -> anyhow::Result<()> {
    let (stream, target) = server.follow(url).await?;
    let (input, mut out) = tokio::io::split(stream);
    let request = format!("CONNECT {target} HTTP/1.0\r\ncontent-length: 0\r\n\r\n");
    out.write_all(request.as_bytes()).await?;
    out.flush().await?;
    let mut input = BufReader::new(input);
    let answer = Answer::read(&mut input).await?;
    ensure!(answer.status != 404, "the console is not available");
    ensure!(answer.redirect()?.is_ok(), "the console is on another host");
    let _raw = Raw::enter();
    let typed = async {
        let mut keys = tokio::io::stdin();
        let mut block = [0; 1024];
        loop {
            let read = keys.read(&mut block).await?;
            let part = block.get(..read).unwrap_or_default();
            let leave = part.iter().position(|key| *key == LEAVE);
            out.write_all(part.get(..leave.unwrap_or(read)).unwrap_or_default())
                .await?;
            out.flush().await?;
            if leave.is_some() || read == 0 {
                return std::io::Result::Ok(());
            }
        }
    };
    let mut screen = tokio::io::stdout();
    tokio::select! {
        typed = typed => typed?,
        shown = tokio::io::copy_buf(&mut input, &mut screen) => {
            shown?;
        }
    }
    Ok(())
}

/// A terminal that passes every key on; it is put back when this goes away.
struct Raw(Option<Termios>);

impl Raw {
    /// Where the input is no terminal there is nothing to do.
    fn enter() -> Self {
        let terminal = rustix::stdio::stdin();
        let before = if isatty(terminal) {
            tcgetattr(terminal).ok()
        } else {
            None
        };
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // One that cannot be changed still shows the console.
            _ = tcsetattr(terminal, OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // There is nobody to tell any more.
            _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}
