//! The README shows what is built and booted.

#[test]
fn the_example_in_the_readme_is_the_one_that_is_tested() {
    let readme = include_str!("../../README.md");
    let example = include_str!("../examples/hello.rs");
    assert!(readme.contains(example), "README.md and kernel/examples/hello.rs differ");
}
