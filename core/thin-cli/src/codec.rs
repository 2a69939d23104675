//! Messages to bytes and back. No I/O, no lengths of frames.

use crate::{Blob, Command, Message, ProtocolError, Response};

const COMMAND: u32 = 9;
const RESPONSE: u32 = 10;
const BLOB: u32 = 11;

const PRINT: u32 = 0;
const LOAD: u32 = 1;
const PROMPT: u32 = 3;
const EXIT: u32 = 4;
const OK: u32 = 5;
const FAILED: u32 = 6;
const CHUNK: u32 = 7;
const END: u32 = 8;
const HTTP_GET: u32 = 12;
const HTTP_PUT: u32 = 13;
const ERROR: u32 = 14;
const DEBUG: u32 = 15;
const PRINT_STDERR: u32 = 16;
const HTTP_CONNECT: u32 = 17;
const WAIT: u32 = 18;

/// Writes a message as the payload of a frame.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut out = Writer(Vec::new());
    match message {
        Message::Command(command) => {
            out.number(COMMAND);
            out.command(command);
        }
        Message::Response(response) => {
            out.number(RESPONSE);
            out.number(match response {
                Response::Ok => OK,
                Response::Failed => FAILED,
                Response::Wait => WAIT,
            });
        }
        Message::Blob(Blob::Chunk(bytes)) => {
            [BLOB, CHUNK, *bytes]
                .into_iter()
                .for_each(|number| out.number(number));
        }
        Message::Blob(Blob::End) => [BLOB, END]
            .into_iter()
            .for_each(|number| out.number(number)),
    }
    out.0
}

/// Reads a message from the payload of a frame.
///
/// # Errors
/// `Malformed`: an unknown tag, a text longer than the frame, bytes left over. Bytes of a text that
/// are no UTF-8 are replaced: a name in another encoding must not end the conversation.
pub fn decode(payload: &[u8]) -> Result<Message, ProtocolError> {
    let mut input = Reader(payload);
    let message = match input.number()? {
        COMMAND => Message::Command(input.command()?),
        RESPONSE => Message::Response(match input.number()? {
            OK => Response::Ok,
            FAILED => Response::Failed,
            WAIT => Response::Wait,
            _ => return Err(ProtocolError::Malformed("unknown response")),
        }),
        BLOB => Message::Blob(match input.number()? {
            CHUNK => Blob::Chunk(input.number()?),
            END => Blob::End,
            _ => return Err(ProtocolError::Malformed("unknown blob")),
        }),
        _ => return Err(ProtocolError::Malformed("unknown kind of message")),
    };
    if !input.0.is_empty() {
        return Err(ProtocolError::Malformed("bytes are left over"));
    }
    Ok(message)
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    /// A text longer than 4 GiB cannot be said; its frame would be refused long before.
    fn text(&mut self, text: &str) {
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.as_bytes());
    }

    fn tagged(&mut self, tag: u32, texts: &[&str]) {
        self.number(tag);
        texts.iter().for_each(|text| self.text(text));
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Print(text) => self.tagged(PRINT, &[text]),
            Command::PrintStderr(text) => self.tagged(PRINT_STDERR, &[text]),
            Command::Debug(text) => self.tagged(DEBUG, &[text]),
            Command::Load(filename) => self.tagged(LOAD, &[filename]),
            Command::Prompt => self.number(PROMPT),
            Command::HttpGet { filename, url } => self.tagged(HTTP_GET, &[filename, url]),
            Command::HttpPut { filename, url } => self.tagged(HTTP_PUT, &[filename, url]),
            Command::HttpConnect(url) => self.tagged(HTTP_CONNECT, &[url]),
            Command::Exit(code) => {
                self.number(EXIT);
                self.0.extend(code.to_le_bytes());
            }
            Command::Error { code, params } => {
                self.tagged(ERROR, &[code]);
                self.number(u32::try_from(params.len()).unwrap_or(u32::MAX));
                params.iter().for_each(|param| self.text(param));
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(ProtocolError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u32, ProtocolError> {
        self.take().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, ProtocolError> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let (text, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(ProtocolError::Malformed(
                "a text is longer than its message",
            ))?;
        self.0 = rest;
        let text = std::str::from_utf8(text);
        text.map(str::to_owned)
            .map_err(|_| ProtocolError::Malformed("a text is not UTF-8"))
    }

    fn command(&mut self) -> Result<Command, ProtocolError> {
        Ok(match self.number()? {
            PRINT => Command::Print(self.text()?),
            PRINT_STDERR => Command::PrintStderr(self.text()?),
            DEBUG => Command::Debug(self.text()?),
            LOAD => Command::Load(self.text()?),
            PROMPT => Command::Prompt,
            EXIT => Command::Exit(i32::from_le_bytes(self.take()?)),
            HTTP_GET => Command::HttpGet {
                filename: self.text()?,
                url: self.text()?,
            },
            HTTP_PUT => Command::HttpPut {
                filename: self.text()?,
                url: self.text()?,
            },
            HTTP_CONNECT => Command::HttpConnect(self.text()?),
            ERROR => {
                let code = self.text()?;
                let count = self.number()?;
                // Each text takes at least its length: a count beyond that fails before it is believed.
                let params = (0..count).map(|_| self.text()).collect::<Result<_, _>>()?;
                Command::Error { code, params }
            }
            _ => return Err(ProtocolError::Malformed("unknown command")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_the_ones_of_the_existing_client_and_server() {
        let cases: [(Message, &[u8]); 6] = [
            (
                Command::Print("hi".into()).into(),
                b"\x09\0\0\0\0\0\0\0\x02\0\0\0hi",
            ),
            (
                Command::Exit(-1).into(),
                b"\x09\0\0\0\x04\0\0\0\xff\xff\xff\xff",
            ),
            (
                Command::Error {
                    code: "E".into(),
                    params: vec!["p".into()],
                }
                .into(),
                b"\x09\0\0\0\x0e\0\0\0\x01\0\0\0E\x01\0\0\0\x01\0\0\0p",
            ),
            (Response::Wait.into(), b"\x0a\0\0\0\x12\0\0\0"),
            (Blob::Chunk(3).into(), b"\x0b\0\0\0\x07\0\0\0\x03\0\0\0"),
            (Blob::End.into(), b"\x0b\0\0\0\x08\0\0\0"),
        ];
        for (message, bytes) in cases {
            assert_eq!(encode(&message), bytes, "{message:?}");
            assert_eq!(decode(bytes).unwrap(), message);
        }
    }

    fn a_command() -> impl Strategy<Value = Command> {
        prop_oneof![
            ".*".prop_map(Command::Print),
            ".*".prop_map(Command::PrintStderr),
            ".*".prop_map(Command::Debug),
            ".*".prop_map(Command::Load),
            Just(Command::Prompt),
            any::<i32>().prop_map(Command::Exit),
            (".*", ".*").prop_map(|(filename, url)| Command::HttpGet { filename, url }),
            (".*", ".*").prop_map(|(filename, url)| Command::HttpPut { filename, url }),
            ".*".prop_map(Command::HttpConnect),
            (".*", prop::collection::vec(".*", 0..4))
                .prop_map(|(code, params)| Command::Error { code, params }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself_and_no_shorter_or_longer(command in a_command()) {
            let bytes = encode(&command.clone().into());
            prop_assert_eq!(decode(&bytes).unwrap(), command.into());
            prop_assert!(decode(&bytes[..bytes.len() - 1]).is_err());
            prop_assert!(decode(&[&bytes[..], b"\0"].concat()).is_err());
        }

        #[test]
        fn any_bytes_decode_to_a_message_that_encodes_to_them_or_to_an_error(
            tag in 0u32..20, inner in 0u32..20, rest in prop::collection::vec(0u8..4, 0..24),
        ) {
            let bytes = [&tag.to_le_bytes()[..], &inner.to_le_bytes(), &rest].concat();
            if let Ok(message) = decode(&bytes) {
                prop_assert_eq!(encode(&message), bytes);
            }
        }
    }
}
