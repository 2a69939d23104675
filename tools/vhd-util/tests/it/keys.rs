//! Encrypted images: hashes of keys, copies from and to them.

use crate::support::Folder;

/// SHA-256 of 32 zeros and 64 bytes of 0x41, and of 32 times 0x22 and the same, by sha256sum.
const HASH_OF_A: &str = "6103c153f9df4551187bb6062b2938045f397591b2e13dee4fff4a6e218f01db";
const HASH_OF_A_WITH_NONCE: &str =
    "3684836032a86df16c8361018787997d4fcdcc9b98d92976ffc08dda57aa1987";

fn with_keys() -> Folder {
    let folder = Folder::new();
    for (name, byte, len) in [
        ("a,aes-xts-plain,512.key", b'A', 64),
        ("b,aes-xts-plain,512.key", b'A', 64),
        ("b,aes-xts-plain,256.key", b'B', 32),
        ("wrong,aes-xts-plain,512.key", b'A', 63),
    ] {
        std::fs::write(folder.path(name), vec![byte; len]).expect("a file");
    }
    folder
}

#[test]
fn hashes_of_keys_are_computed_set_checked_and_printed() {
    let folder = with_keys();
    let key = "a,aes-xts-plain,512.key";
    let nonce = "22".repeat(32);
    let computed = folder.util(&format!("key -C -k {key}"));
    assert_eq!(computed, format!("{HASH_OF_A}\n"));
    let computed = folder.util(&format!("key -C -k {key} -N {nonce}"));
    assert_eq!(computed, format!("{HASH_OF_A_WITH_NONCE}\n"));

    folder.util("create -n a.vhd -s 16");
    assert_eq!(folder.util("key -p -n a.vhd"), "none\n");
    assert_eq!(folder.fails(&format!("key -c -n a.vhd -k {key}")).0, 22);
    folder.util(&format!("key -s -n a.vhd -k {key} -N {nonce}"));
    folder.sound("a.vhd");
    assert_eq!(
        folder.util("key -p -n a.vhd"),
        format!("{nonce} {HASH_OF_A_WITH_NONCE}\n")
    );
    folder.util(&format!("key -c -n a.vhd -k {key}"));
    // The hash alone does it too, and a snapshot has it from its parent.
    folder.util("create -n b.vhd -s 16");
    folder.util(&format!("key -s -n b.vhd -H {HASH_OF_A}"));
    folder.util("key -c -n b.vhd -k b,aes-xts-plain,512.key");
    folder.util("snapshot -n c.vhd -p b.vhd -e");
    assert_eq!(
        folder.util("key -p -n c.vhd"),
        folder.util("key -p -n b.vhd")
    );
}

#[test]
fn keys_that_do_not_fit_are_refused() {
    let folder = with_keys();
    folder.util("create -n a.vhd -s 16");
    folder.util("create -n b.vhd -s 16");
    folder.util("create -n wrong.vhd -s 16");
    folder.util("create -n fixed.vhd -s 2 -r");
    folder.image("used.vhd", &[1]);
    folder.util("key -s -n b.vhd -k b,aes-xts-plain,256.key");
    let other = format!("key -s -n used.vhd -H {HASH_OF_A}");
    for (line, code) in [
        // Another image's key, another key of the same image, a key of odd length.
        ("key -s -n a.vhd -k b,aes-xts-plain,512.key", 22),
        ("key -c -n b.vhd -k b,aes-xts-plain,512.key", 22),
        ("key -s -n wrong.vhd -k wrong,aes-xts-plain,512.key", 22),
        ("key -C -k wrong,aes-xts-plain,512.key", 22),
        ("key -s -n a.vhd -H 1234", 22),
        ("key -s -n a.vhd", 22),
        ("key -n a.vhd", 22),
        ("key -s -n a.vhd -k nowhere", 2),
        (&*other, 22),
        (&*other.replace("used", "fixed"), 38),
    ] {
        let (got, said) = folder.fails(line);
        assert_eq!(got, code, "{line}: {said}");
    }
}

#[test]
fn copies_are_encrypted_and_decrypted_through_chains() {
    let folder = with_keys();
    folder.image("p.vhd", &[1, 4]);
    folder.util("snapshot -n c.vhd -p p.vhd");
    folder.put("c.vhd", 4100, &[0x77; 9 * 512]);
    let clear = folder.flat(&["c.vhd", "p.vhd"]);

    folder.util("copy -n c.vhd -N a.vhd -k a,aes-xts-plain,512.key");
    folder.sound("a.vhd");
    folder.util("key -c -n a.vhd -k a,aes-xts-plain,512.key");
    assert_eq!(
        folder.util("query -n a.vhd -a -v -d"),
        "16\nchain depth: 1\n2\n"
    );
    let encrypted = folder.flat(&["a.vhd"]);
    let differs = |sector: usize| encrypted[sector * 512..][..512] != clear[sector * 512..][..512];
    assert!((4096..8192).all(differs) && !(0..4096).any(differs));

    // On top of it, as a guest with the key would write: a sector, the rest shines through.
    folder.util("snapshot -n b.vhd -p a.vhd");
    let mut sector = vec![0x99; 512];
    let cipher = vhd_rs::Cipher::new(&[b'A'; 64]).unwrap();
    cipher.encrypt(4097, &mut sector).unwrap();
    folder.put("b.vhd", 4097, &sector);
    let mut expected = clear.clone();
    expected[4097 * 512..][..512].fill(0x99);
    folder.util("copy -n b.vhd -N plain.vhd -K .");
    folder.sound("plain.vhd");
    assert!(folder.flat(&["plain.vhd"]) == expected);
    assert_eq!(folder.util("key -p -n plain.vhd"), "none\n");

    // Coalescing needs no key, as the sectors keep their places.
    assert_eq!(folder.util("coalesce -n b.vhd"), "Coalesced 1 sectors");
    folder.util("copy -n a.vhd -N plain.vhd -K .");
    assert!(folder.flat(&["plain.vhd"]) == expected);
}

#[test]
fn what_would_mix_clear_and_encrypted_data_is_refused() {
    let folder = with_keys();
    folder.image("p.vhd", &[1]);
    folder.util("copy -n p.vhd -N a.vhd -k a,aes-xts-plain,512.key");
    folder.util("snapshot -n b.vhd -p p.vhd");
    folder.util(&format!("key -s -n b.vhd -H {HASH_OF_A}"));
    folder.put("b.vhd", 9, &[1; 512]);
    folder.util("create -n f.vhd -s 2 -r");
    for (line, expected) in [
        // No key, one for an image that has none, and a chain of both sorts.
        ("copy -n a.vhd -N x.vhd -K /dev", "aes-xts-plain"),
        ("copy -n b.vhd -N x.vhd -K .", "p.vhd"),
        ("coalesce -n b.vhd", "encrypted otherwise"),
        ("fill -n a.vhd", "a key must be given"),
        ("copy -n f.vhd -N x.vhd -k a,aes-xts-plain,512.key", "fixed"),
        ("copy -n b.vhd -N p.vhd -K .", ""),
    ] {
        let before = folder.bytes("p.vhd");
        let (code, said) = folder.fails(line);
        assert_eq!(
            (code, said.contains(expected)),
            (22, true),
            "{line}: {said}"
        );
        assert!(folder.bytes("p.vhd") == before);
    }
    assert!(!folder.path("x.vhd").exists());
}
