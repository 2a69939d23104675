//! The cipher of encrypted images: AES-XTS over sectors. It is here, though the crate moves no
//! payload, because which sector has which tweak is a fact of the format; it is a feature, because
//! most readers of images need none of it. Metadata, bitmaps and what is not in any image are in
//! clear.

use crate::wire::SECTOR_BYTES;
use crate::{Error, ErrorKind};
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16};
use aes::{Aes128, Aes256};
use std::fmt;
use xts_mode::Xts128;

/// A key made ready for use.
///
/// A disk of more than 2 TiB repeats its tweaks, as the number of a sector counts with 32 bits.
/// That is how existing disks are encrypted.
pub struct Cipher(Kind);

enum Kind {
    Aes128(Box<Xts128<Aes128>>),
    Aes256(Box<Xts128<Aes256>>),
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Aes128(_) => "Cipher(aes-128-xts)",
            Kind::Aes256(_) => "Cipher(aes-256-xts)",
        })
    }
}

impl Cipher {
    /// Takes a key of 32 bytes (AES-128-XTS) or 64 bytes (AES-256-XTS).
    ///
    /// # Errors
    /// `Key` for any other length.
    pub fn new(key: &[u8]) -> Result<Self, Error> {
        let (data, tweak) = key.split_at(key.len() / 2);
        let kind = match key.len() {
            32 => xts(data, tweak).map(|xts| Kind::Aes128(Box::new(xts))),
            64 => xts(data, tweak).map(|xts| Kind::Aes256(Box::new(xts))),
            _ => None,
        };
        kind.map(Self).ok_or_else(|| {
            let rule = "keys have 32 or 64 bytes";
            Error::new(ErrorKind::Key, "key.len", key.len(), rule)
        })
    }

    /// Encrypts whole sectors in place, the first of which is `first_sector` of the virtual disk.
    ///
    /// # Errors
    /// `Argument` if `data` is not whole sectors; it is then unchanged.
    pub fn encrypt(&self, first_sector: u64, data: &mut [u8]) -> Result<(), Error> {
        for (tweak, sector) in sectors(first_sector, data)? {
            match &self.0 {
                Kind::Aes128(xts) => xts.encrypt_sector(sector, tweak.into()),
                Kind::Aes256(xts) => xts.encrypt_sector(sector, tweak.into()),
            }
        }
        Ok(())
    }

    /// Decrypts whole sectors in place, the first of which is `first_sector` of the virtual disk.
    ///
    /// # Errors
    /// `Argument` if `data` is not whole sectors; it is then unchanged.
    pub fn decrypt(&self, first_sector: u64, data: &mut [u8]) -> Result<(), Error> {
        for (tweak, sector) in sectors(first_sector, data)? {
            match &self.0 {
                Kind::Aes128(xts) => xts.decrypt_sector(sector, tweak.into()),
                Kind::Aes256(xts) => xts.decrypt_sector(sector, tweak.into()),
            }
        }
        Ok(())
    }
}

fn xts<C>(data_key: &[u8], tweak_key: &[u8]) -> Option<Xts128<C>>
where
    C: KeyInit + BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt,
{
    let data = C::new_from_slice(data_key).ok()?;
    let tweak = C::new_from_slice(tweak_key).ok()?;
    Some(Xts128::new(data, tweak))
}

/// Each sector with its tweak: its number's low 32 bits, little-endian, then zeros.
fn sectors(
    first_sector: u64,
    data: &mut [u8],
) -> Result<impl Iterator<Item = ([u8; 16], &mut [u8])>, Error> {
    if !(data.len() as u64).is_multiple_of(SECTOR_BYTES) {
        let rule = "must be a multiple of 512";
        return Err(Error::argument("data.len", data.len(), rule));
    }
    let numbers = (0..).map(move |n| first_sector.wrapping_add(n));
    let tweaks = numbers.map(|sector: u64| {
        let mut tweak = [0; 16];
        let low = (sector as u32).to_le_bytes();
        tweak.iter_mut().zip(low).for_each(|(to, from)| *to = from);
        tweak
    });
    Ok(tweaks.zip(data.chunks_exact_mut(SECTOR_BYTES as usize)))
}

#[cfg(test)]
mod tests {
    use super::Cipher;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .filter_map(|c| Some(c.to_digit(16)? as u8))
            .collect();
        digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
    }

    const KEY_128: &str = "27182818284590452353602874713526 31415926535897932384626433832795";
    const KEY_256: &str = "2718281828459045235360287471352662497757247093699959574966967627
                           3141592653589793238462643383279502884197169399375105820974944592";

    #[test]
    fn sectors_are_encrypted_as_in_the_standards_examples() {
        // IEEE 1619-2007, annex B, vectors 4, 10 and 13: bytes 0 to 255 twice.
        for (key, sector, expected) in [
            (
                KEY_128,
                0,
                "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
            ),
            (
                KEY_256,
                0xff,
                "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
            ),
            (
                KEY_256,
                0xffff_ffff,
                "bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5",
            ),
            // What XenServer does and the standard does not: numbers wrap at 2 TiB.
            (
                KEY_256,
                (5 << 32) + 0xff,
                "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
            ),
        ] {
            let cipher = Cipher::new(&hex(key)).unwrap();
            let plain: Vec<u8> = (0..512).map(|n| n as u8).collect();
            let mut data = plain.clone();
            cipher.encrypt(sector, &mut data).unwrap();
            assert_eq!(data[..32], hex(expected), "sector {sector:#x}");
            cipher.decrypt(sector, &mut data).unwrap();
            assert_eq!(data, plain);
        }
    }

    #[test]
    fn each_sector_of_a_run_has_its_own_number() {
        let cipher = Cipher::new(&[7; 64]).unwrap();
        let mut run = vec![9; 3 * 512];
        cipher.encrypt(0xffff_fffe, &mut run).unwrap();
        for (sector, encrypted) in [0xffff_fffe_u64, 0xffff_ffff, 0]
            .into_iter()
            .zip(run.chunks(512))
        {
            let mut alone = [9; 512];
            cipher.encrypt(sector, &mut alone).unwrap();
            assert_eq!(encrypted, alone);
        }
    }

    #[test]
    fn keys_and_runs_of_other_lengths_are_refused() {
        for len in [0, 16, 31, 33, 48, 65, 128] {
            assert!(Cipher::new(&vec![1; len]).is_err(), "{len}");
        }
        let cipher = Cipher::new(&[1; 32]).unwrap();
        let mut odd = [0; 700];
        assert!(cipher.encrypt(0, &mut odd).is_err() && cipher.decrypt(0, &mut odd).is_err());
        assert_eq!(odd, [0; 700]);
        assert_eq!(format!("{cipher:?}"), "Cipher(aes-128-xts)");
    }
}
