//! The whole story as a test.

#[test]
fn the_story_plays_to_its_end() {
    let built = e2e::host::Built::beside_this_test().expect("a build");
    let dir = tempfile::tempdir().expect("a directory");
    e2e::scenario::play(&built, dir.path(), &mut |line| println!("{line}")).expect("the story");
}
