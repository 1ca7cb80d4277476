from posttrain_plugins.testing import parametrize_with_checks


@parametrize_with_checks("reward", ["haiku_form"])
def test_reward(plugin, check):
    check(plugin)


@parametrize_with_checks("adapter", ["attention_lora"])
def test_adapter(plugin, check):
    check(plugin)


@parametrize_with_checks("strategy", ["best_form"])
def test_strategy(plugin, check):
    check(plugin)


@parametrize_with_checks("dataset", ["haikus"])
def test_dataset(plugin, check):
    check(plugin)


@parametrize_with_checks("stage", ["well_formed"])
def test_stage(plugin, check):
    check(plugin)
