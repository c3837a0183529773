use super::*;
use crate::sensor::fields::VMLINUX;

#[test]
fn every_hook_of_this_kernel_has_the_expected_prototype() {
    let data = std::fs::read(VMLINUX).expect("the tests need a kernel with BTF");
    let prototypes = Prototypes::parse(VMLINUX, data).expect("BTF");
    let hooks = LADDERS
        .iter()
        .flat_map(|ladder| ladder.rungs.iter())
        .flat_map(|rung| rung.iter())
        .map(|step| step.hook);
    let mut compared = 0;
    for hook in hooks {
        assert_eq!(hook.incompatibility(&prototypes), None, "{}", hook.name());
        let contract = hook.expected_parameters();
        compared += usize::from(contract.is_some_and(|(name, _)| {
            prototypes
                .parameters(&name)
                .is_ok_and(|found| found.is_some())
        }));
    }
    assert!(
        compared > 5,
        "this kernel's types name the hooks: {compared}"
    );
}

#[test]
fn a_different_prototype_is_reported() {
    let data = std::fs::read(VMLINUX).expect("the tests need a kernel with BTF");
    let prototypes = Prototypes::parse(VMLINUX, data).expect("BTF");
    assert!(
        !ExpectedParameter::Pointer("file")
            .accepts(&BtfParameter::Pointer("task_struct".to_owned()))
    );
    assert!(!ExpectedParameter::Value(4).accepts(&BtfParameter::Value(8)));
    let parameters = prototypes.parameters("vfs_fsync").expect("readable");
    assert_eq!(
        parameters,
        Some(vec![
            BtfParameter::Pointer("file".to_owned()),
            BtfParameter::Value(4)
        ])
    );
}
