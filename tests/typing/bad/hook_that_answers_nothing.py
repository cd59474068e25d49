from packhorse import JobSpec, Packhorse

app = Packhorse("memory://")


@app.on_enqueue  # error: arg-type
def look(spec: JobSpec) -> None: ...
