//! One connection: its first line decides whether it speaks HTTP or is handed over whole.

use crate::api::{Api, Origin};
use crate::cli;
use bytes::{Buf, Bytes, BytesMut};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};
use units::RequestId;

/// Time for the head of a request, and for a connection to stay idle.
const HEAD_TIME_MAX: Duration = Duration::from_secs(60);
/// Bytes in the head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What bytes go over: TCP, TLS or a local socket.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A request whose connection is handed over: the head is read, the body and what follows are not.
pub(crate) struct RawRequest {
    /// Where it comes from.
    pub(crate) origin: Origin,
    /// Follows the request through the logs.
    pub(crate) request_id: RequestId,
    /// The request line and the headers, lines ended by CR LF, without the empty line.
    pub(crate) head: String,
    /// The rest of the connection, from the first byte of the body.
    pub(crate) stream: Box<dyn ByteStream>,
}

impl RawRequest {
    /// Returns the value of the first header of this name, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found
                .trim()
                .eq_ignore_ascii_case(name)
                .then(|| value.trim())
        })
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(api: &Arc<Api>, mut stream: Box<dyn ByteStream>, origin: Origin) {
    let deadline = Instant::now() + HEAD_TIME_MAX;
    let mut read = BytesMut::new();
    let first_line = tokio::select! {
        line = timeout_at(deadline, read_until(&mut stream, &mut read, b"\n")) => line,
        () = api.stopping().cancelled() => return,
    };
    if !matches!(first_line, Ok(Ok(_))) {
        return;
    }
    if !(read.starts_with(b"POST /cli ") || read.starts_with(b"POST /cli?")) {
        http(
            api,
            Rewound {
                read: read.freeze(),
                stream,
            },
            origin,
        )
        .await;
        return;
    }
    let head = timeout_at(deadline, read_until(&mut stream, &mut read, b"\r\n\r\n")).await;
    if let Ok(Ok(end)) = head {
        let head = read.split_to(end);
        let head = String::from_utf8_lossy(&head).trim_end().to_owned();
        let stream = Box::new(Rewound {
            read: read.freeze(),
            stream,
        });
        let request_id = RequestId::random();
        let request = RawRequest {
            origin,
            request_id,
            head,
            stream,
        };
        if let Err(error) = cli::serve(api.clone(), request).await {
            tracing::debug!(%error, "CLI connection ended");
        }
    }
}

async fn http(api: &Arc<Api>, stream: Rewound, origin: Origin) {
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(super::answer(&api, origin, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // A client that has sent all it has may close its side before it reads the answer.
        .half_close(true)
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = api.stopping().cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Reads until `mark` is in `read`; answers the place after it.
async fn read_until(
    stream: &mut Box<dyn ByteStream>,
    read: &mut BytesMut,
    mark: &[u8],
) -> io::Result<usize> {
    loop {
        if let Some(at) = read.windows(mark.len()).position(|window| window == mark) {
            return Ok(at.saturating_add(mark.len()));
        }
        if read.len() >= HEAD_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the head is too long",
            ));
        }
        if stream.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A stream whose first bytes have been read already.
struct Rewound {
    read: Bytes,
    stream: Box<dyn ByteStream>,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let take = self.read.len().min(into.remaining());
        into.put_slice(self.read.get(..take).unwrap_or_default());
        self.read.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
