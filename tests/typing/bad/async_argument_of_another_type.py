from packhorse import Packhorse

app = Packhorse("memory://")


@app.task
async def send(to: str) -> None: ...


async def main() -> None:
    await send.aenqueue(["a"])  # error: arg-type
