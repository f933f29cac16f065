//! The example in README.md is the one that is built and booted.

#[test]
fn the_example_in_the_readme_is_the_tested_one() {
    let readme = include_str!("../../README.md");
    let example = include_str!("../examples/hello.rs");
    assert!(readme.contains(example), "README.md and kernel/examples/hello.rs differ");
}
