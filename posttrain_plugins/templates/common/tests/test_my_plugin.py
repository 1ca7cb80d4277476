from posttrain_plugins.testing import parametrize_with_checks


@parametrize_with_checks("KIND", ["my_plugin"])
def test_my_plugin(plugin, check):
    check(plugin)
