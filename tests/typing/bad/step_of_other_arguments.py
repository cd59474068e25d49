from packhorse import Context


async def handler(ctx: Context) -> None:
    await ctx.step("name", str.upper, 1)  # error: arg-type call-overload
