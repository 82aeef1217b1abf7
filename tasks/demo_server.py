"""The page of `mien demo` over HTTP: static files, photos and speech in, faces and their files out.

Everything is served by this process, and the page may load nothing from anywhere else (`Content-Security-Policy`), so
it works without a network. Only this machine is answered unless the address says otherwise, and other websites that
are open in the same browser cannot post here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tasks.demo import Studio

PAGE = Path(__file__).with_name("demo_page")
LOCAL = ("127.0.0.1", "localhost")
POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'"

Answer = Callable[[Request], Awaitable[Response]]


class TooLargeError(ValueError):
    """More was sent than is taken."""


def demo_app(studio: Studio, *, hosts: tuple[str, ...] = ()) -> Starlette:
    """The application; beside this machine's own names it answers to `hosts`, and to any name for `*`."""
    routes = [
        Route("/", _page),
        Mount("/page", StaticFiles(directory=PAGE)),
        Route("/api/about", _answering(_about)),
        Route("/api/photos", _answering(_photo), methods=["POST"]),
        Route("/api/faces/{key}/speech", _answering(_speech), methods=["POST"]),
        Route("/api/faces/{key}/files/{name}", _answering(_file)),
        Route("/api/faces/{key}/everything.zip", _answering(_everything)),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if "*" in hosts else [*LOCAL, *hosts]),
        Middleware(BaseHTTPMiddleware, dispatch=_guarded),
    ]
    app = Starlette(routes=routes, middleware=middleware)
    app.state.studio = studio
    return app


async def _guarded(request: Request, pass_on: Callable[[Request], Awaitable[Response]]) -> Response:
    """No posts from other websites; nothing on the page from other hosts; nothing kept by the browser."""
    origin = request.headers.get("origin")
    if request.method != "GET" and origin and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"error": f"{origin}: another website, expected this page"}, status_code=403)
    response = await pass_on(request)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def _answering(answer: Answer) -> Answer:
    """The same with refusals as `{"error": …}`: what the user can mend by 4xx, a fault of ours by 500."""

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except TooLargeError as error:
            return JSONResponse({"error": str(error)}, status_code=413)
        except (ValueError, OSError) as error:
            return JSONResponse({"error": str(error)}, status_code=422)
        except Exception as error:  # noqa: BLE001 - the outermost place: the page shows one line, the server goes on
            text = (str(error).splitlines() or [""])[0]
            message = f"{type(error).__name__}: {text} (a fault in Mien; please report it)"
            return JSONResponse({"error": message}, status_code=500)

    return answered


async def _page(_: Request) -> Response:
    return FileResponse(PAGE / "index.html")


async def _about(request: Request) -> Response:
    return JSONResponse(_studio(request).about())


async def _photo(request: Request) -> Response:
    studio, query = _studio(request), request.query_params
    limit = studio.params.ingest.max_image_bytes if studio.reader is None else studio.reader.max_image_bytes
    content = await _body(request, limit)
    name = query.get("name", "photo")
    try:
        made = await run_in_threadpool(studio.add_photo, name, content, refine=query.get("refine") == "1")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return JSONResponse(made)


async def _speech(request: Request) -> Response:
    studio, query = _studio(request), request.query_params
    content = await _body(request, studio.params.ingest_speech.max_file_bytes)
    made = await run_in_threadpool(
        studio.add_speech,
        request.path_params["key"],
        query.get("name", "speech"),
        content,
        emotion=query.get("emotion", ""),
        style=query.get("style", ""),
        film=query.get("film") == "1",
    )
    return JSONResponse(made)


async def _file(request: Request) -> Response:
    try:
        return FileResponse(_studio(request).file(request.path_params["key"], request.path_params["name"]))
    except ValueError as error:
        return JSONResponse({"error": str(error)}, status_code=404)


async def _everything(request: Request) -> Response:
    studio, key = _studio(request), request.path_params["key"]
    try:
        name = studio.face(key).name
    except ValueError as error:
        return JSONResponse({"error": str(error)}, status_code=404)
    content = await run_in_threadpool(studio.bundle, key)
    plain = name.encode("ascii", "replace").decode().replace("?", "_").replace('"', "'")
    disposition = f'attachment; filename="{plain}.zip"'
    return Response(content, media_type="application/zip", headers={"Content-Disposition": disposition})


async def _body(request: Request, limit: int) -> bytes:
    """What was sent, as long as it is within the limit; more is not even received."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLargeError(f"the file has more than {limit // 2**20} MiB, which is the limit; send a smaller one")
        parts.append(part)
    return b"".join(parts)


def _studio(request: Request) -> Studio:
    return request.app.state.studio  # type: ignore[no-any-return]
