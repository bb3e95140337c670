"""The tasks that come with the command: a name, and the function that builds it. A new one is a file and an entry."""

BUILTIN = {
    "digits-mlp": "momo_cli.task.builtin.digits:mlp",
    "digits-cnn": "momo_cli.task.builtin.digits:cnn",
    "charlm": "momo_cli.task.builtin.charlm:build",
    "cifar10-vit": "momo_cli.task.builtin.cifar:vit",
    "cifar10-resnet20": "momo_cli.task.builtin.cifar:resnet20",
    "cifar100-resnet110": "momo_cli.task.builtin.cifar:resnet110",
}
